"""What a data source is: one file each under `sources/`, registered by `@source`.

Source modules import numpy and friends only when they load, so that a run that is up to date
finds out in milliseconds.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekd.artifacts import sha256_file
from edgekd.config.schema import Data
from edgekd.errors import UsageError
from edgekd.registry import Registry
from edgekd.results import Tokens

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Samples:
    """Everything a source holds, in a fixed order.

    `inputs` is (n, channels, height, width) or (n, features), uint8 or float32; dividing by
    `scale` brings it to about [0, 1]. `labels` (n,) int64 index `classes`. `test` (n,) bool marks
    the source's own test split, or is None where it has none. `ids` name the samples where the source
    has names for them: paths below a folder, or the array `ids`; elsewhere their positions do.
    `task` (see `tasks/task.py`) is what they are for: `labels` and `classes` are then that task's.
    Of texts, `inputs` (n, length) int32 are token ids as `tokens` says, `texts` what they were made
    of and `tokenizer` how, as the text of a tokenizer.json. Of sound, `front_end` is how features were
    made, as the text of a logmel.json.
    """

    inputs: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    scale: float
    test: np.ndarray | None = None
    ids: tuple[str, ...] | None = None
    tokens: Tokens | None = None
    texts: tuple[str, ...] | None = None
    tokenizer: str | None = None
    task: str = "classification"
    front_end: str | None = None


def without_labels(inputs: np.ndarray, scale: float, front_end: str | None = None) -> Samples:
    """Samples of which only this is known: every label is −1, of no class."""
    import numpy as np

    labels = np.full(len(inputs), -1, np.int64)
    return Samples(inputs, labels, (), scale, front_end=front_end)


class Source(Protocol):
    """A kind of data, `kind:location` in the configuration. `location` is None for an embedded one.

    Where samples may be without labels, it also has `unlabelled`, which takes and gives what `load` does
    and reads no labels (`distill.transfer.unlabelled`).
    """

    def fingerprint(self, location: Path | None) -> str:
        """A text that changes when the content does, found without loading the data."""

    def load(self, location: Path | None, config: Data) -> Samples:
        """Read everything. Raises UsageError for anything that cannot be used."""


SOURCES: Registry[type[Source]] = Registry("data source", "edgekd.data.sources")
source = SOURCES.register


def existing(location: Path | None, *, folder: bool, kind: str) -> Path:
    """The location, checked to be a folder or a file. Raises UsageError when it is not."""
    what = "FOLDER" if folder else "FILE"
    if location is None:
        raise UsageError(f"needs a path: {kind}:{what}", where="data.source")
    if not location.exists():
        raise UsageError(f"no such {what.lower()}: {location}", where="data.source")
    if location.is_dir() != folder:
        raise UsageError(f"not a {what.lower()}: {location}", where="data.source")
    return location


def content_hash(path: Path) -> str:
    """SHA-256 of a file, read once per process while its size and time of change stay."""
    stat = path.stat()
    return _content_hash(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _content_hash(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def listing_hash(folder: Path, paths: Iterable[Path]) -> str:
    """Hash of names, sizes and times of change: a large folder is not read to find it unchanged."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        line = f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def number_classes(labels: np.ndarray, *, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of any integer or text values as (n,) int64 from 0, and the values as class names."""
    import numpy as np

    if labels.dtype.kind not in "iuUb":
        raise UsageError(f"labels should be integers or text, not {labels.dtype}", where=where)
    values, numbered = np.unique(labels, return_inverse=True)
    return numbered.astype(np.int64).reshape(-1), tuple(str(value) for value in values)
