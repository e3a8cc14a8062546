"""Views: one augmentation of one sample, a pure function of (seed, sample index, view number).

Nothing depends on the batch a sample is in, the order of the epoch or the number of workers, so
that the teacher and the student see the same view and a cached answer stays valid.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from edgekd.config.schema import Augment
from edgekd.data.resolve import Dataset
from edgekd.errors import UsageError


class Views:
    """`count` views of every sample of a data set."""

    def __init__(self, dataset: Dataset, augment: Augment, seed: int) -> None:
        self._augments = augment.crop > 0 or augment.flip
        if self._augments and dataset.inputs.ndim != 4:
            raise UsageError(
                f"crop and flip are for images; these inputs have the shape {dataset.input.shape}",
                where="data.augment",
            )
        self.dataset, self.augment, self.seed = dataset, augment, seed
        # Without augmentation all views are one: the teacher need not answer twice.
        self.count = augment.views if self._augments else 1

    def batch(self, indices: np.ndarray | Tensor, view: int) -> Tensor:
        """View `view` of the samples `indices`, normalised float32 (n, *input.shape)."""
        samples = np.asarray(indices)
        raw = self.dataset.inputs[samples]
        if not self._augments:
            return self.dataset.normalise(raw)
        rows, columns = self._pixels(samples, view, raw.shape[2], raw.shape[3])
        crop = self.augment.crop
        padded = np.pad(raw, ((0, 0), (0, 0), (crop, crop), (crop, crop)))
        n, channels = np.arange(len(samples)), np.arange(raw.shape[1])
        views = padded[
            n[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return self.dataset.normalise(views)

    def _pixels(
        self, samples: np.ndarray, view: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which rows (n, height) and columns (n, width) of the padded image make the view."""
        shifts = 2 * self.augment.crop + 1
        down, right, mirrored = (random_bits(self.seed, samples, view, draw) for draw in range(3))
        rows = (down % shifts).astype(np.int64)[:, None] + np.arange(height)
        columns = (right % shifts).astype(np.int64)[:, None] + np.arange(width)
        if self.augment.flip:
            flip = (mirrored & 1).astype(bool)
            columns[flip] = columns[flip, ::-1]
        return rows, columns


def random_bits(seed: int, samples: np.ndarray, view: int, draw: int) -> np.ndarray:
    """32 random bits per sample, as uint64, from nothing but the arguments.

    SplitMix64's finaliser (Steele, Lea, Flood 2014) over one argument after the other.
    """
    state = np.zeros(len(samples), np.uint64)
    for word in (np.uint64(seed), samples.astype(np.uint64), np.uint64(view), np.uint64(draw)):
        state = _mix((state ^ word) + np.uint64(0x9E3779B97F4A7C15))
    return state >> np.uint64(32)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
