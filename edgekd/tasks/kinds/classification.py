"""One class per sample. Outputs are logits (n, classes), labels (n,) int64; −1: not known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.results import Accuracy, Interval
from edgekd.statistics import paired_difference, wilson
from edgekd.tasks.task import CLASSIFICATION, Task, task

if TYPE_CHECKING:
    from torch import Tensor


@task(CLASSIFICATION)
class Classification(Task):
    """Top-1 accuracy; cross-entropy."""

    metric, term = "accuracy", "cross_entropy"
    network = "a classifier with {n} classes"

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Every class is in every split."""
        return labels

    def loss(self, outputs: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(outputs, labels)

    def value(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """The share that is right."""
        return float((outputs.argmax(axis=1) == labels).mean())

    def score(self, outputs: np.ndarray, labels: np.ndarray, classes: int) -> Accuracy:
        """With a Wilson interval."""
        return accuracy(outputs.argmax(axis=1), labels, classes)

    def lost(
        self, before: np.ndarray, after: np.ndarray, labels: np.ndarray
    ) -> tuple[float, Interval]:
        """With the interval of paired proportions."""
        right, kept = (x.argmax(1) == labels for x in (before, after))
        lost, gained = int((right & ~kept).sum()), int((kept & ~right).sum())
        return float(right.mean() - kept.mean()), paired_difference(lost, gained, len(labels))

    def standard_error(self, value: float, samples: int) -> float:
        """Above zero for a share of 1 too (Agresti and Coull 1998: plus 4)."""
        adjusted = (value * samples + 2) / (samples + 4)
        return math.sqrt(adjusted * (1 - adjusted) / (samples + 4))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over those that have a label, of labels (n, …), −1 for none, or shares (n, classes)."""
    from torch.nn import functional as F

    if labels.is_floating_point():
        return F.cross_entropy(logits, labels)
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp_min(1)


def accuracy(answers: np.ndarray, labels: np.ndarray, classes: int) -> Accuracy:
    """Top-1 accuracy with a 95 % Wilson interval; `answers` and `labels` are (n,) class numbers."""
    right = answers == labels
    correct, total = int(right.sum()), len(labels)
    return Accuracy(
        correct=correct,
        total=total,
        value=correct / total,
        interval=wilson(correct, total),
        per_class=tuple(
            (int(right[labels == c].sum()), int((labels == c).sum())) for c in range(classes)
        ),
    )
