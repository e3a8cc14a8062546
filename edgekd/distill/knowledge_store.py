"""Teacher outputs per (sample, view), kept on disk: the teacher runs once, however many students."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.artifacts import atomic_path, disk_errors, read_json, sha256_json, write_json
from edgekd.errors import UsageError


class KnowledgeStore:
    """A teacher's logits in a memory-mapped array of (views, samples, classes), float32.

    Filled as batches ask for them. `identity` is everything the logits depend on (teacher
    weights, preprocessing, data, view policy): its hash names the store's folder, so that a
    store made from anything else is never read.
    """

    def __init__(
        self, root: Path, identity: dict[str, Any], *, views: int, samples: int, classes: int
    ) -> None:
        self.folder = root / sha256_json(identity)[:32]
        shape = (views, samples, classes)
        about = {"identity": identity, "shape": list(shape)}
        if not (self.folder / "store.json").exists():
            with disk_errors(self.folder):
                _allocate(self.folder / "logits.npy", shape, np.float32)
                _allocate(self.folder / "known.npy", shape[:2], np.bool_)
            write_json(self.folder / "store.json", about)
        elif read_json(self.folder / "store.json") != about:
            raise UsageError(
                "this knowledge store was made for something else",
                where=str(self.folder),
                fix="delete this folder; it is filled again",
            )
        self._logits = np.load(self.folder / "logits.npy", mmap_mode="r+", allow_pickle=False)
        self._known = np.load(self.folder / "known.npy", mmap_mode="r+", allow_pickle=False)

    def logits(
        self, teacher: Callable[[Tensor], Tensor], inputs: Tensor, indices: Tensor, view: int
    ) -> Tensor:
        """The teacher's logits for one batch of one view; computed only when not yet known.

        `inputs` (n, …) is that very view of the samples `indices` (n,); returns (n, classes).
        """
        rows = indices.numpy()
        if not self._known[view, rows].all():
            # The whole batch, even when only a part is missing: a batch of another size
            # may differ in the last bit, and a resumed training must not.
            with torch.inference_mode():
                self._logits[view, rows] = teacher(inputs).numpy()
            self._known[view, rows] = True
        return torch.from_numpy(self._logits[view, rows])

    def known(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Which of the samples `rows` (n,) are known, (n,) bool."""
        found: np.ndarray = self._known[view, rows]
        return found

    def read(self, rows: np.ndarray, view: int) -> Tensor | None:
        """The logits (n, classes) of the samples `rows`, or None unless all of them are known."""
        if not self._known[view, rows].all():
            return None
        return torch.from_numpy(self._logits[view, rows])

    def keep(self, rows: np.ndarray, view: int, values: Tensor) -> None:
        """Write logits (n, classes) that came from elsewhere."""
        self._logits[view, rows] = values.numpy()
        self._known[view, rows] = True

    @property
    def filled(self) -> float:
        """The share of (sample, view) pairs that are known, in [0, 1]."""
        return float(self._known.mean())


def _allocate(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    """An array file of zeros whose blocks are reserved: a full disk shows now, not as SIGBUS later."""
    with atomic_path(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        del array
        with temporary.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
