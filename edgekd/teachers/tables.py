"""Tables of answers from anywhere: Parquet, CSV, JSON lines or .npz, as columns of plain values."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

# A line of JSON or CSV that is longer is no record.
_LONGEST_FIELD = 10_000_000


@dataclass(frozen=True)
class Table:
    """`columns` by name, all of `rows` values; `classes` where the file itself names them."""

    columns: dict[str, Any]
    rows: int
    classes: list[str] | None = None


def read_table(path: Path) -> Table:
    """All of the file. Raises UsageError for anything that cannot be read as a table."""
    readers = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".npz": _npz,
    }
    with _readable(path):
        return readers[_suffix(path)](path)


def column_names(path: Path) -> list[str]:
    """The names of the columns, from the file's first bytes or its index. Raises UsageError."""
    with _readable(path):
        match _suffix(path):
            case ".parquet":
                return list(_pyarrow("parquet").read_schema(path).names)
            case ".csv":
                with path.open(newline="", encoding="utf-8-sig") as file:
                    return next(csv.reader(file), [])
            case ".npz":
                return _npz_names(path)
            case _:
                return list(next(_lines(path), {}))


class _readable:
    """Turns what readers raise into one error about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, UsageError) or not isinstance(error, Exception):
            return
        if isinstance(error, UnicodeDecodeError):
            raise UsageError(
                f"is not UTF-8: byte 0x{error.object[error.start]:02x}",
                where=str(self.path),
                fix="save it as UTF-8, as by `iconv -f latin1 -t utf-8`",
            ) from None
        text = str(error).strip().splitlines()
        raise UsageError(
            f"cannot be read: {text[0][:300] if text else type(error).__name__}",
            where=str(self.path),
        ) from None


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".jsonl", ".ndjson", ".npz"):
        raise UsageError(
            f"is called {suffix or 'without a suffix'}",
            where=str(path),
            fix="records are .parquet, .csv, .jsonl or .npz files",
        )
    return suffix


def _pyarrow(module: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise UsageError(
            "reading Parquet needs pyarrow", fix="pip install 'edgekd[records]'"
        ) from None


def _parquet(path: Path) -> Table:
    table = _pyarrow("parquet").read_table(path)
    said = (table.schema.metadata or {}).get(b"edgekd.classes")
    classes = [str(name) for name in json.loads(said)] if said else None
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(columns, table.num_rows, classes)


def write_parquet(path: Path, rows: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    """Rows as a Parquet file, atomically, with the names of the classes in its metadata."""
    from edgekd.artifacts import atomic_path

    parquet, arrow = _pyarrow("parquet"), _pyarrow("lib")
    table = arrow.Table.from_pylist(rows)
    said = json.dumps(list(classes), ensure_ascii=False)
    table = table.replace_schema_metadata({"edgekd.classes": said})
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def _csv(path: Path) -> Table:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"has two columns {twice[0]!r}", where=f"{path}:1")
        rows = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise UsageError(
                    f"has {len(row)} values for {len(names)} columns",
                    where=f"{path}:{reader.line_num}",
                )
            rows.append(row)
    return Table({name: [row[i] for row in rows] for i, name in enumerate(names)}, len(rows))


def _jsonl(path: Path) -> Table:
    rows = list(_lines(path))
    names = list(rows[0]) if rows else []
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise UsageError(
                f"record {number} has the keys {', '.join(row)}; the first one {', '.join(names)}",
                where=str(path),
            )
    return Table({name: [row[name] for row in rows] for name in names}, len(rows))


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UsageError(f"not JSON: {error}", where=f"{path}:{number}") from None
            if not isinstance(value, dict):
                raise UsageError("should be one JSON object a line", where=f"{path}:{number}")
            yield value


def _npz_names(path: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _npz(path: Path) -> Table:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    classes = arrays.pop("classes", None)
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"has arrays of different lengths: {lengths}", where=str(path))
    names = None if classes is None else [str(name) for name in classes.reshape(-1)]
    return Table(dict(arrays), next(iter(lengths.values()), 0), names)
