"""`csv:FILE`: a table with a header; every column a number, those of `data.targets` to be predicted.

RFC 4180 with commas, or semicolons where the header has them. The last column is predicted where no
targets are named: numbers for regression, anything else as a class.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.numbers import numbers
from edgekd.data.source import Samples, content_hash, existing, number_classes, source
from edgekd.errors import UsageError
from edgekd.registry import suggestion

if TYPE_CHECKING:
    import numpy as np


@source("csv")
class Csv:
    """Inputs (n, features) float32, in the order of the columns."""

    def fingerprint(self, location: Path | None) -> str:
        """Hash of the file."""
        return content_hash(existing(location, folder=False, kind="csv"))

    def load(self, location: Path | None, config: Data) -> Samples:
        """Every row is a sample. Raises UsageError, with the line, for what is no number."""
        import numpy as np

        path = existing(location, folder=False, kind="csv")
        header, rows = _read(path)
        targets = config.targets or header[-1:]
        for name in targets:
            if name not in header:
                raise UsageError(
                    f"{path.name} has no column {name!r}{suggestion(name, header)}",
                    where="data.targets",
                )
        features = [name for name in header if name not in targets]
        if not features:
            raise UsageError("leaves no column to predict from", where="data.targets")
        with np.errstate(over="ignore"):
            inputs = _columns(rows, header, features, path).astype(np.float32)
        if config.task == "classification" or not _are_numbers(rows, header, targets):
            if len(targets) > 1:
                raise UsageError(
                    f"{len(targets)} columns of classes; should be one", where="data.targets"
                )
            at = header.index(targets[0])
            labels, classes = number_classes(
                np.array([row[at] for _, row in rows]), where=str(path)
            )
            return Samples(inputs, labels, classes, 1.0)
        y = _columns(rows, header, targets, path)
        labels, names, task = numbers(y, np.array(targets), config, where=str(path))
        return Samples(inputs, labels, names, 1.0, task=task)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and every row with its line."""
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            separator = ";" if first.count(";") > first.count(",") else ","
            header = [name.strip() for name in next(csv.reader([first], delimiter=separator))]
            reader = csv.reader(file, delimiter=separator)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UsageError(
                        f"has {len(row)} values, the header has {len(header)}",
                        where=f"{path}:{reader.line_num + 1}",
                    )
                rows.append((reader.line_num + 1, row))
        except (UnicodeDecodeError, csv.Error, StopIteration) as error:
            raise UsageError(f"cannot be read as CSV: {error}", where=str(path)) from None
    if header and all(_is_number(name) for name in header):
        raise UsageError(
            "the first line has numbers, and should name every column", where=f"{path}:1"
        )
    if len(set(header)) != len(header) or "" in header:
        raise UsageError(
            "the first line should name every column, each differently", where=f"{path}:1"
        )
    if not rows:
        raise UsageError("has no rows below its header", where=str(path))
    return header, rows


def _columns(
    rows: list[tuple[int, list[str]]], header: list[str], names: list[str], path: Path
) -> np.ndarray:
    """(n, len(names)) float64, all of them finite in float32, which is what is computed with."""
    import numpy as np

    places = [header.index(name) for name in names]
    values = np.empty((len(rows), len(places)), np.float64)
    for i, (line, row) in enumerate(rows):
        for j, place in enumerate(places):
            try:
                values[i, j] = float(row[place])
            except ValueError:
                raise UsageError(
                    f"column {header[place]!r} has {row[place]!r:.40}, which is no number",
                    where=f"{path}:{line}",
                    fix="fill in what is missing, and write categories as numbers (one column each)",
                ) from None
    with np.errstate(over="ignore"):
        infinite = np.argwhere(~np.isfinite(values.astype(np.float32)))
    if len(infinite):
        i, j = infinite[0]
        raise UsageError(
            f"column {names[j]!r} has {rows[i][1][places[j]]!r:.40}, which is not a finite float32 number "
            f"({len(infinite)} values are not)",
            where=f"{path}:{rows[i][0]}",
            fix="fill in what is missing, or leave the row out",
        )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _are_numbers(rows: list[tuple[int, list[str]]], header: list[str], targets: list[str]) -> bool:
    """Whether the targets of most rows are numbers: those that are not are then told by line."""
    places = [header.index(name) for name in targets]
    return 2 * sum(all(_is_number(row[i]) for i in places) for _, row in rows) > len(rows)
