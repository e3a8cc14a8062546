"""Quantiles of numbers (Koenker and Bassett 1978): `quantile:0.1,0.5,0.9`.

Outputs are (n, numbers × levels) float32, the levels of the first number first; labels are the numbers,
each as often as there are levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.tasks.task import Resampled, task

if TYPE_CHECKING:
    from torch import Tensor


@task("quantile")
class Quantile(Resampled):
    """R¹ (Koenker and Machado 1999), the share of the check loss that is explained; check loss."""

    metric, term = "r1", "check_loss"
    network = "a network that gives quantiles of numbers, {n} for a sample"
    top1 = False

    def __init__(self, argument: str = "") -> None:
        """`argument`: levels in (0, 1), separated by commas."""
        self.levels = tuple(float(level) for level in argument.split(","))

    def loss(self, outputs: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """Mean of ρ_τ(y − ŷ) = (y − ŷ)·(τ − 1[y < ŷ]), in deviations of y."""
        import torch

        error = labels - outputs if scale is None else (labels - outputs) / scale
        tau = error.new_tensor(self._levels(error.shape[1]))
        return torch.maximum(tau * error, (tau - 1) * error).mean()

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, 2·outputs): check losses, then those of the labels' own quantile."""
        tau = self._levels(labels.shape[1])
        y, z = labels.astype(np.float64), outputs.astype(np.float64)
        constant = np.array([np.quantile(y[:, j], level) for j, level in enumerate(tau)])
        return np.concatenate([_check(y - z, tau), _check(y - constant, tau)], axis=1)

    def of(self, sums: np.ndarray, samples: int) -> np.ndarray:
        """1 − V̂(τ) / Ṽ(τ), mean over outputs."""
        loss, least = np.split(sums, 2, axis=-1)
        return np.asarray((1 - loss / np.maximum(least, np.finfo(np.float32).tiny)).mean(axis=-1))

    def _levels(self, outputs: int) -> np.ndarray:
        return np.resize(np.array(self.levels), outputs)


def _check(error: np.ndarray, tau: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(tau * error, (tau - 1) * error))
