"""Confidence intervals: of quantiles, distribution-free from order statistics; of a mean, Student's."""

from __future__ import annotations

import math

import numpy as np


def quantile_ranks(count: int, q: float, level: float = 0.95) -> tuple[int | None, int | None]:
    """0-based ranks (low, high) of the order statistics that bound quantile `q` at `level`.

    None where `count` samples are too few to bound that side. David and Nagaraja 2003, §7.1.
    """
    tail = (1 - level) / 2
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(count + 1)
    chances = factorials[count] - factorials[k] - factorials[count - k]
    chances += k * math.log(q) + (count - k) * math.log1p(-q)
    below = np.cumsum(np.exp(chances))  # P(at most k of the samples are below the quantile)
    low = int(np.searchsorted(below, tail, side="right")) - 1
    high = int(np.searchsorted(below, 1 - tail, side="left"))
    return (low if low >= 0 else None), (high if high < count else None)


def quantile_interval(values: np.ndarray, q: float) -> tuple[float, float] | None:
    """The 95 % interval of quantile `q` of independent `values`; None when they are too few."""
    low, high = quantile_ranks(len(values), q)
    if low is None or high is None:
        return None
    ordered = np.sort(values)
    return float(ordered[low]), float(ordered[high])


# The 97.5 % quantile of Student's t by degrees of freedom, from 1.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


def launches_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the geometric mean of positive `values`, one per launch, at least two.

    What is common to a launch (where its memory lies, what the machine was doing) is in the spread
    between launches, together with the noise within them: no model of either is needed.
    Kalibera and Jones 2013 (Rigorous Benchmarking in Reasonable Time), §5.
    """
    logs = np.log(values)
    freedom = len(values) - 1
    # Beyond the table, Fisher's expansion to two terms: off by less than 1e-3.
    t = (
        _STUDENT[freedom - 1]
        if freedom <= len(_STUDENT)
        else 1.96 + 2.372 / freedom + 2.8 / freedom**2
    )
    half = t * float(np.std(logs, ddof=1)) / math.sqrt(len(values))
    centre = float(np.mean(logs))
    return math.exp(centre - half), math.exp(centre + half)
