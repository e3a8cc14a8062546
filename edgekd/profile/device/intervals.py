"""Distribution-free confidence intervals of quantiles, from order statistics."""

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
