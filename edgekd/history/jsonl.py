"""The history as JSON lines: one figure a line, to carry from machine to machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from edgekd.errors import UsageError
from edgekd.history import store
from edgekd.history.entry import Entry

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
    `name` and the line's number for the first line that edgekd did not write.
    """
    found = list(_entries(file, name))
    return len(found), store.append(path, found)


def _entries(file: IO[bytes], name: str) -> Iterator[Entry]:
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise UsageError("the line is too long", where=f"{name}:{number}")
        if line.strip():
            yield _entry(line, f"{name}:{number}")


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
        return Entry.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"{key:.80}: {first['msg']:.200}", where=where) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value
