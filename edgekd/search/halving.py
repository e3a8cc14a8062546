"""Successive halving (Jamieson and Talwalkar 2016): many short trainings, of which the best go on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def rung_epochs(last: int, rungs: int, keep: float) -> tuple[int, ...]:
    """Epochs at which trials are compared: the last, and each `keep` times as many as the one before.

    Fewer rungs where there are not so many different numbers of epochs.
    """
    marks = [max(1, round(last / keep**rung)) for rung in reversed(range(rungs))]
    return tuple(dict.fromkeys(marks))


def promoted(scores: Mapping[K, tuple[float, ...]], keep: float) -> list[K]:
    """The best of the trials, one in `keep` and at least one; larger scores are better.

    Ties go to whoever was there first, so that the same scores give the same trials.
    """
    count = max(1, round(len(scores) / keep))
    order = {trial: position for position, trial in enumerate(scores)}
    return sorted(scores, key=lambda t: (*(-part for part in scores[t]), order[t]))[:count]
