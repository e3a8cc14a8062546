"""Confidence intervals of shares."""

from __future__ import annotations

import math

# The 97.5 % quantile of the standard normal distribution.
Z_95 = 1.959963984540054


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a binomial share (Wilson 1927, JASA 22:209), within [0, 1]."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = successes / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return low, high


def clopper_pearson(successes: int, total: int, level: float) -> tuple[float, float]:
    """The exact interval of a binomial share (Clopper and Pearson 1934); holds at any level."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = betaincinv(successes, total - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, total - successes, 1 - tail) if successes < total else 1.0
    return float(low), float(high)


def paired_difference(only_first: int, only_second: int, total: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares measured on the same `total` samples.

    `only_first` samples are right in the first alone, `only_second` in the second alone; the
    difference is first − second. Bonett and Price 2012 (adjusted Wald for paired proportions),
    which holds its level for few discordant samples too; it excludes 0 where the exact test of
    McNemar (1947) rejects at 5 %.
    """
    n = total + 2
    p12, p21 = (only_first + 1) / n, (only_second + 1) / n
    half = Z_95 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    return p12 - p21 - half, p12 - p21 + half
