"""Numbers for a sample. Outputs and labels are (n, outputs) float32, in the units of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.tasks.task import Resampled, task

if TYPE_CHECKING:
    from torch import Tensor


@task("regression")
class Regression(Resampled):
    """R², the share of the labels' variance that is explained, mean over outputs; squared error."""

    metric, term = "r2", "squared_error"
    network = "a network that gives numbers, {n} for a sample"
    top1 = False

    def loss(self, outputs: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """Mean of ((y − ŷ) / deviation of y)², so that no unit outweighs another."""
        error = outputs - labels
        return (error if scale is None else error / scale).square().mean()

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, 3·outputs): squared errors, then labels and their squares, from near their mean."""
        y, z = labels.astype(np.float64), outputs.astype(np.float64)
        centred = y - y.mean(axis=0)
        return np.concatenate([(y - z) ** 2, centred, centred**2], axis=1)

    def of(self, sums: np.ndarray, samples: int) -> np.ndarray:
        """1 − Σ(y − ŷ)² / Σ(y − ȳ)², mean over outputs."""
        errors, labels, squares = np.split(sums, 3, axis=-1)
        variation = np.maximum(squares - labels**2 / samples, np.finfo(np.float32).tiny)
        return np.asarray((1 - errors / variation).mean(axis=-1))
