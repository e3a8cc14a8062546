"""A class per pixel. Outputs are logits (n, classes, height, width), labels (n, height, width) integers.

Pixels with the label −1 count neither in the loss nor in the score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.tasks.kinds.classification import cross_entropy
from edgekd.tasks.task import Resampled, task

if TYPE_CHECKING:
    from torch import Tensor


@task("segmentation")
class Segmentation(Resampled):
    """Mean over classes of intersection over union (Everingham et al. 2010); cross-entropy of pixels."""

    metric, term = "miou", "cross_entropy"
    network = "a network that gives every pixel one of {n} classes"

    def shape(self, classes: int, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """A logit for every class at every pixel."""
        return (classes, *inputs[1:])

    def loss(self, outputs: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """Mean over the pixels that have a label."""
        return cross_entropy(outputs, labels.long())

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, 2·classes): pixels in the intersection by class, then in the union."""
        classes = outputs.shape[1]
        answers, counted = outputs.argmax(axis=1), labels >= 0
        both, either = [], []
        for c in range(classes):
            given, right = (answers == c) & counted, labels == c
            both.append((given & right).sum(axis=(1, 2)))
            either.append((given | right).sum(axis=(1, 2)))
        return np.stack([*both, *either], axis=1).astype(np.float64)

    def of(self, sums: np.ndarray, samples: int) -> np.ndarray:
        """Classes that are nowhere, neither in the labels nor in the answers, are left out."""
        both, either = np.split(sums, 2, axis=-1)
        shares = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        return np.asarray(shares.sum(axis=-1) / np.maximum((either > 0).sum(axis=-1), 1))

    def per_class(self, sums: np.ndarray, classes: int) -> tuple[tuple[int, int], ...]:
        """Pixels in the intersection and in the union."""
        both, either = np.split(sums, 2)
        return tuple((int(a), int(b)) for a, b in zip(both, either, strict=True))
