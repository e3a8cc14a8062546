"""`ts:FILE`: time series in the format of the UCR/UEA archive; `ts:FOLDER`: its *_TRAIN.ts and *_TEST.ts.

Format: https://www.aeon-toolkit.org (Bagnall 2018, arXiv 1811.00075): lines of `@key value`, `@data`, then a
series a line: channels separated by colons, their values by commas, the class last; or a number, in the
archive for regression (Tan et al. 2021, arXiv 2006.10996: `@targetLabel true`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.numbers import numbers, of_numbers
from edgekd.data.source import Samples, content_hash, existing, number_classes, source
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@source("ts")
class TimeSeries:
    """Series of equal length as (n, channels, length) float32."""

    def fingerprint(self, location: Path | None) -> str:
        """Hashes of the files."""
        return " ".join(content_hash(path) for path in _files(location))

    def load(self, location: Path | None, config: Data) -> Samples:
        """All series, with the archive's own test split where it is a folder."""
        import numpy as np

        files = _files(location)
        parts = [read_ts(path) for path in files]
        shapes = {path: series.shape[1:] for path, (series, _) in zip(files, parts, strict=True)}
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"{c} × {n} in {path.name}" for path, (c, n) in shapes.items())
            raise UsageError(f"series are of different shapes: {told}", where=str(files[-1].parent))
        targets = np.concatenate([labels for _, labels in parts])
        first = len(parts[0][0])
        test = np.arange(len(targets)) >= first if len(files) == 2 else None
        series = np.concatenate([series for series, _ in parts])
        if of_numbers(targets, config):
            labels, classes, task = numbers(targets, None, config, where=str(files[0]))
            return Samples(series, labels, classes, 1.0, test, task=task)
        labels, classes = number_classes(targets, where=str(files[0]))
        return Samples(series, labels, classes, 1.0, test)


def _files(location: Path | None) -> list[Path]:
    """The file, or the training and the test file of a folder."""
    if location is None or not location.is_dir():
        return [existing(location, folder=False, kind="ts")]
    found = []
    for split in ("TRAIN", "TEST"):
        paths = sorted(location.glob(f"*_{split}.ts"))
        if len(paths) != 1:
            raise UsageError(
                f"has {len(paths)} files *_{split}.ts",
                where=str(location),
                fix="ts: needs a file, or a folder with one *_TRAIN.ts and one *_TEST.ts",
            )
        found += paths
    return found


def read_ts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, channels, length) float32 and the classes (n,) as text, or numbers (n,) with @targetLabel.

    Raises UsageError, with the line, for what is malformed, missing or of another length.
    """
    import numpy as np

    rows: list[np.ndarray] = []
    labels: list[str] = []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = ((n, line.strip()) for n, line in enumerate(file, 1))
        names, of_target = _header(lines, path)
        for number, line in lines:
            if not line or line.startswith("#"):
                continue
            where = f"{path}:{number}"
            *channels, label = line.split(":")
            if of_target and not _is_number(label):
                raise UsageError(f"target {label[:60]!r} is no number", where=where)
            if names and label not in names:
                raise UsageError(
                    f"class {label[:60]!r} is none of @classLabel: {', '.join(names)}", where=where
                )
            row = _series(channels, where)
            if rows and row.shape != rows[0].shape:
                raise UsageError(
                    f"a series of {row.shape[0]} × {row.shape[1]} values (channels × length), the first "
                    f"one has {rows[0].shape[0]} × {rows[0].shape[1]}",
                    where=where,
                    fix="cut them to windows of equal length",
                )
            rows.append(row)
            labels.append(label)
    if not rows:
        raise UsageError("has no series after @data", where=str(path))
    return np.stack(rows), np.array(labels, np.float64 if of_target else None)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _header(lines: Iterator[tuple[int, str]], path: Path) -> tuple[list[str], bool]:
    """The names of the classes, or that targets are numbers; `lines` then stand behind @data."""
    names: list[str] = []
    of_target, lacking = False, 0
    for number, line in lines:
        key, *values = line.split() or [""]
        match key.lower():
            case "@data":
                if lacking and not of_target:
                    raise UsageError("has no classes (@classLabel)", where=f"{path}:{lacking}")
                return names, of_target
            case "@targetlabel":
                of_target = values[:1] in (["true"], ["True"])
            case "@timestamps" if values[:1] in (["true"], ["True"]):
                raise UsageError(
                    "has time stamps; should be sampled evenly",
                    where=f"{path}:{number}",
                    fix="resample the series, and write @timeStamps false",
                )
            case "@classlabel":
                lacking = 0 if values[:1] in (["true"], ["True"]) else number
                names = values[1:]
            case text if text and not text.startswith(("@", "#")):
                raise UsageError("values before @data: no .ts file", where=f"{path}:{number}")
    raise UsageError("has no @data: no .ts file", where=str(path))


def _series(channels: list[str], where: str) -> np.ndarray:
    import numpy as np

    if not channels:
        raise UsageError("should be values, a colon and the class", where=where)
    try:
        rows = [[float(value) for value in text.split(",")] for text in channels]
    except ValueError:
        missing = any("?" in text for text in channels)
        raise UsageError(
            "has missing values (?)" if missing else "has values that are no numbers",
            where=where,
            fix="fill them in, or leave the series out",
        ) from None
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise UsageError(f"its channels have different lengths: {lengths}", where=where)
    with np.errstate(over="ignore"):  # told as not finite
        return np.array(rows, np.float64).astype(np.float32)
