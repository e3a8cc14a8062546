"""`text:FILE`: texts and their classes, a row each, in CSV, JSON lines or Parquet.

`text:FOLDER` has them in `train.*` and `test.*`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.schema import Data
from edgekd.data.source import (
    Samples,
    content_hash,
    existing,
    number_classes,
    source,
    without_labels,
)
from edgekd.data.tokenizer import KEY, open_tokenizer
from edgekd.errors import UsageError
from edgekd.registry import suggestion
from edgekd.results import Tokens

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

_AT_ONCE = 4096
_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")


@source("text")
class Text:
    """Token ids by `data.text.tokenizer`, padded to `data.text.max_length`."""

    def fingerprint(self, location: Path | None) -> str:
        """Hashes of the files."""
        return " ".join(content_hash(path) for path in _files(location))

    def load(self, location: Path | None, config: Data) -> Samples:
        """All rows, with the source's own test split where it is a folder."""
        import numpy as np

        tokenizer, tokens = _tokenizer(config)
        files = _files(location)
        parts = [_read(path, config) for path in files]
        texts = [text for found, _ in parts for text in found]
        labels, classes = number_classes(
            _labels([label for _, found in parts for label in found]), where=str(files[0])
        )
        first = len(parts[0][0])
        return Samples(
            inputs=_ids(tokenizer, texts),
            labels=labels,
            classes=classes,
            scale=1.0,
            test=np.arange(len(texts)) >= first if len(files) == 2 else None,
            tokens=tokens,
            texts=tuple(texts),
            tokenizer=tokenizer.to_str(),
        )

    def unlabelled(self, location: Path | None, config: Data) -> Samples:
        """All rows; a column of labels is not looked at."""
        tokenizer, _ = _tokenizer(config)
        parts = [_read(path, config, labelled=False) for path in _files(location)]
        return without_labels(_ids(tokenizer, [text for texts, _ in parts for text in texts]), 1.0)


def _tokenizer(config: Data) -> tuple[Tokenizer, Tokens]:
    if config.text.tokenizer is None:
        raise UsageError(
            "texts need a tokenizer",
            where=KEY,
            fix="give a tokenizer.json, or a folder with one; a teacher hf:FOLDER brings its own",
        )
    return open_tokenizer(Path(config.text.tokenizer), config.text.max_length)


def _ids(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """(n, length) int32. Some texts at a time: what a tokenizer knows of a text is 80 times its size."""
    import numpy as np

    parts = [
        np.array(
            [row.ids for row in tokenizer.encode_batch_fast(texts[i : i + _AT_ONCE])], np.int32
        )
        for i in range(0, len(texts), _AT_ONCE)
    ]
    return np.concatenate(parts)


def _files(location: Path | None) -> list[Path]:
    """The file; or the training and the test file of a folder."""
    if location is None or not location.is_dir():
        path = existing(location, folder=False, kind="text")
        if path.suffix.lower() not in _SUFFIXES:
            raise UsageError(
                f"is called {path.suffix or 'without a suffix'}; should be one of "
                f"{', '.join(_SUFFIXES)}",
                where=str(path),
            )
        return [path]
    found = []
    for split in ("train", "test"):
        paths = [p for p in (location / f"{split}{suffix}" for suffix in _SUFFIXES) if p.is_file()]
        if len(paths) != 1:
            raise UsageError(
                f"has {len(paths)} files for the {split} split",
                where=str(location),
                fix=f"text: needs a file, or a folder with one {split}.csv, .jsonl or .parquet",
            )
        found += paths
    return found


def _read(path: Path, config: Data, *, labelled: bool = True) -> tuple[list[str], list[Any]]:
    """Texts and labels of a file. Raises UsageError for columns that are not there and empty texts."""
    from edgekd.teachers.tables import read_table

    table, settings = read_table(path), config.text
    if not table.columns:
        raise UsageError("is empty", where=str(path), fix="texts and labels are rows of it")
    needed = (("column", settings.column), ("label", settings.label))
    for key, column in needed if labelled else needed[:1]:
        if column not in table.columns:
            raise UsageError(
                f"has no column {column!r}{suggestion(column, table.columns)}",
                where=str(path),
                fix=f"data.text.{key} names it; there are {', '.join(table.columns) or 'none'}",
            )
    texts = list(table.columns[settings.column])
    labels = list(table.columns[settings.label]) if labelled else []
    if not texts:
        raise UsageError("has no rows", where=str(path))
    empty = [i for i, text in enumerate(texts, 1) if not isinstance(text, str) or not text.strip()]
    if empty:
        more = f" ({len(empty)} are)" if len(empty) > 1 else ""
        raise UsageError(
            f"the text of row {empty[0]} is empty or no text{more}",
            where=str(path),
            fix="leave such rows out",
        )
    for i, text in enumerate(texts, 1):
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(
                f"the text of row {i} has half of a surrogate pair in it, which is no character",
                where=str(path),
                fix="take it out, or replace it by U+FFFD",
            )
    without = [i for i, label in enumerate(labels, 1) if label is None or label == ""]
    if without:
        raise UsageError(f"row {without[0]} has no label", where=str(path))
    return texts, labels


def _labels(values: list[Any]) -> np.ndarray:
    """As integers where all of them are, also in a CSV; as text otherwise."""
    import numpy as np

    def whole(value: Any) -> bool:
        text = str(value)
        return not isinstance(value, bool | float) and text.removeprefix("-").isdecimal()

    if all(whole(value) for value in values):
        return np.array([int(value) for value in values])
    return np.array([str(value) for value in values])
