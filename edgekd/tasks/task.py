"""What a network is for: what its outputs and labels are, what is learned, and how well answers fit.

Every task has one score: 1 is perfect, higher is better, and differences are told in points. PyTorch is
only imported where a loss is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from edgekd.errors import UsageError
from edgekd.registry import Registry
from edgekd.results import SCORES, Accuracy, Interval

if TYPE_CHECKING:
    from torch import Tensor

CLASSIFICATION = "classification"
DRAWS = 1000


class Task:
    """`outputs` are what networks give, (n, …); `labels` (n, …) what is right; both of one data set."""

    name: ClassVar[str]
    # Of the score, one of `results.SCORES` (budgets are on METRIC and METRIC_drop); of the term in the loss.
    metric: ClassVar[str]
    term: ClassVar[str]
    # What such a network is, of {n} outputs.
    network: ClassVar[str]
    # Whether there is a best class, of which teacher and student can say the same.
    top1: ClassVar[bool] = True

    def __init__(self, argument: str = "") -> None:
        """`argument` is what follows the name and a colon in `Dataset.task`."""

    @property
    def label(self) -> str:
        """The score as people say it."""
        return SCORES[self.metric]

    def shape(self, classes: int, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Of the outputs for one sample of shape `inputs`."""
        return (classes,)

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """(n,) int64: samples of each number go to every split."""
        return np.zeros(len(labels), np.int64)

    def loss(self, outputs: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """The scalar loss to the labels; `scale` (outputs,) are the labels' deviations, if they have some."""
        raise NotImplementedError

    def value(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """The score alone."""
        raise NotImplementedError

    def score(self, outputs: np.ndarray, labels: np.ndarray, classes: int) -> Accuracy:
        """With its 95 % interval."""
        raise NotImplementedError

    def lost(
        self, before: np.ndarray, after: np.ndarray, labels: np.ndarray
    ) -> tuple[float, Interval]:
        """Points from the outputs `before` to those `after`, on the same samples; 95 % interval."""
        raise NotImplementedError

    def standard_error(self, value: float, samples: int) -> float:
        """By how much a score of `value` may be above another by the luck of the samples alone."""
        return 0.0

    def agreement(self, outputs: np.ndarray, others: np.ndarray) -> float | None:
        """The share of answers (samples, or pixels) with the same class; None without classes."""
        if not self.top1 or not len(outputs):
            return None
        return float((outputs.argmax(1) == others.argmax(1)).mean())


class Resampled(Task):
    """A task whose score is a function of sums over samples: intervals by the bootstrap.

    Efron 1979; 1000 samples drawn with replacement from the n that there are, with fixed seeds, and
    the 2.5 and 97.5 % quantiles of what they give.
    """

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, k): what every sample adds."""
        raise NotImplementedError

    def of(self, sums: np.ndarray, samples: int) -> np.ndarray:
        """The score (…) of sums (…, k) over so many samples."""
        raise NotImplementedError

    def per_class(self, sums: np.ndarray, classes: int) -> tuple[tuple[int, int], ...]:
        """(right, all) by class, where there are some."""
        return ()

    def value(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """Of all samples."""
        return float(self.of(self.parts(outputs, labels).sum(axis=0), len(labels)))

    def score(self, outputs: np.ndarray, labels: np.ndarray, classes: int) -> Accuracy:
        """Of all samples, with the interval over samples."""
        parts = self.parts(outputs, labels)
        sums = parts.sum(axis=0)
        [drawn] = self._drawn(parts)
        return Accuracy(
            metric=self.metric,
            correct=None,
            total=len(labels),
            value=float(self.of(sums, len(labels))),
            interval=_middle(drawn),
            per_class=self.per_class(sums, classes),
        )

    def lost(
        self, before: np.ndarray, after: np.ndarray, labels: np.ndarray
    ) -> tuple[float, Interval]:
        """Both scores of the same draws."""
        parts = self.parts(before, labels), self.parts(after, labels)
        first, second = (float(self.of(p.sum(axis=0), len(labels))) for p in parts)
        was, became = self._drawn(*parts)
        return first - second, _middle(was - became)

    def _drawn(self, *parts: np.ndarray) -> list[np.ndarray]:
        """The score (DRAWS,) of each draw from every one of `parts` (n, k), the same samples of all."""
        n = len(parts[0])
        random = np.random.default_rng(0)
        found: list[list[np.ndarray]] = [[] for _ in parts]
        for _ in range(0, DRAWS, 50):
            counts = random.multinomial(n, np.full(n, 1 / n), size=50).astype(np.float64)
            for values, own in zip(found, parts, strict=True):
                values.append(self.of(counts @ own, n))
        return [np.concatenate(values) for values in found]


def _middle(drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


TASKS: Registry[type[Task]] = Registry("task", "edgekd.tasks.kinds")
T = TypeVar("T", bound=type[Task])


def task(name: str) -> Callable[[T], T]:
    """Class decorator: register a Task as `name`."""

    def decorate(cls: T) -> T:
        cls.name = name
        TASKS.register(name)(cls)
        return cls

    return decorate


def of(text: str) -> Task:
    """The task of a data set or a model: NAME, or NAME:ARGUMENT. Raises UsageError for an unknown one."""
    name, _, argument = text.partition(":")
    return TASKS.get(name)(argument)


def only_classes(text: str, *, what: str, where: str) -> None:
    """Raises UsageError where something for classes alone is asked of another task."""
    if text != CLASSIFICATION:
        raise UsageError(
            f"{what} is for classification, and this data is for {text.partition(':')[0]}",
            where=where,
        )
