"""The history as JSON lines: one figure a line, to carry from machine to machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from edgekd.config.schema import DIMENSIONS, possible
from edgekd.errors import UsageError
from edgekd.history import store
from edgekd.history.entry import Entry
from edgekd.registry import suggestion

# The format of a line; a reader refuses those it does not know.
SCHEMA = 1
_LONGEST_LINE = 16_384


def dump(entries: Iterable[Entry], file: IO[str]) -> int:
    """Write a line per entry; return how many."""
    count = 0
    for entry in entries:
        value = {"schema": SCHEMA, **entry.model_dump(mode="json")}
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        count += 1
    return count


def load(path: Path, file: IO[bytes], name: str) -> tuple[int, int]:
    """Add the lines of `file` to the history at `path`: all, or none if one of them is wrong.

    Returns the number of lines and of those that were not there yet. Raises UsageError with
    `name` and the line's number for the first line that edgekd did not write, that holds what no
    figure can be, or another value of a measurement that is there.
    """
    found = list(_entries(file, name))
    known = (
        {_measurement(entry): entry.value for entry in store.read(path)} if path.exists() else {}
    )
    for where, entry in found:
        if (value := known.setdefault(_measurement(entry), entry.value)) != entry.value:
            raise UsageError(
                f"value: {entry.value:g} of {entry.key.figure} at {entry.time.isoformat()}, where the "
                f"same measurement gave {value:g}",
                where=where,
                fix="one of the two is not what edgekd wrote",
            )
    return len(found), store.append(path, [entry for _, entry in found])


def _measurement(entry: Entry) -> tuple[object, ...]:
    """What two entries have in common only where they are of one measurement of one file."""
    return (*entry.key, entry.time, entry.config, entry.artifact, entry.commit)


def _entries(file: IO[bytes], name: str) -> Iterator[tuple[str, Entry]]:
    """Each with its place in the file."""
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise UsageError("the line is too long", where=f"{name}:{number}")
        if line.strip():
            where = f"{name}:{number}"
            yield where, _entry(line, where)


def _entry(line: bytes, where: str) -> Entry:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON object: {error}", where=where) from None
    if not isinstance(value, dict):
        raise UsageError("should be a JSON object", where=where)
    schema = value.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        raise UsageError(
            f"schema: is {schema!r:.40}; this edgekd reads {SCHEMA}",
            where=where,
            fix="upgrade edgekd" if newer else "give a file from `edgekd history export`",
        )
    missing = Entry.model_fields.keys() - value
    if missing:
        raise UsageError(f"{min(missing)}: is missing", where=where)
    try:
        entry = Entry.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"{key:.80}: {first['msg']:.200}", where=where) from None

    _check_possible(entry, where)
    return entry


def _check_possible(entry: Entry, where: str) -> None:
    """Raises UsageError for a metric that there is none of, and for a value that it cannot have."""
    users = re.fullmatch(r"user\.[A-Za-z][A-Za-z0-9_]*", entry.metric)
    if entry.metric not in DIMENSIONS and not users:
        raise UsageError(
            f"metric: no metric {entry.metric!r}{suggestion(entry.metric, DIMENSIONS)}",
            where=where,
            fix="upgrade edgekd, if a newer one wrote it",
        )
    least, most = possible(entry.metric)
    for name, value in (("value", entry.value), *(("interval", v) for v in entry.interval or ())):
        # Rounding; and the interval of a difference of shares may reach beyond what one can be.
        slack = 1.0 if name == "interval" and entry.key.dimension == "points" else 1e-9
        if not least - slack <= value <= most + slack:
            raise UsageError(
                f"{name}: {value:g} can never be {entry.metric} (in {entry.key.dimension})",
                where=where,
            )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value
