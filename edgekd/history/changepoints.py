"""Where the level of a noisy series moved, and by how much.

Binary segmentation (Vostrikova 1981) over seeded intervals, so that a plateau is not hidden by what
follows it (Kovács, Bühlmann, Li and Munk 2023, Biometrika 110:249); a split is kept when a permutation
test says so, as in E-divisive means (Matteson and James 2014, JASA 109:334). The statistic is the
CUSUM of values that are winsorised around the median (Huber 1964), so that single outliers, which
performance figures are full of, make no level. benchmarks/history_power.py shows what it finds.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from edgekd.results import Interval
from edgekd.statistics import Z_95

# A level lasts for at least this many points.
SHORTEST = 4
# Fewer can never be significant: of 13 points, 2 / C(13, 6) of the orders are as clear as any.
FEWEST = 14
# The share of series without a change in which one is found. A history is looked at again after
# every commit, and has dozens of series: the usual 1 or 5 % would cry wolf every week.
LEVEL = 0.001
_PERMUTATIONS = 1999
_CLIP = 2.5
_MAD_TO_SD = 1.4826
# Values that one batch of permutations may hold.
_BATCH = 1_000_000


@dataclass(frozen=True)
class Shift:
    """How far `after` lies from `before`: Hodges-Lehmann estimate with its 95 % interval (Moses).

    A ratio for `relative` ones, a difference otherwise. The place was chosen where the levels
    differ most, which the interval does not know: it is a little too far from none.
    """

    value: float
    interval: Interval
    relative: bool


@dataclass(frozen=True)
class _Splits:
    """Every split that is looked at in a series of one length: values[start:split] | [split:end]."""

    start: np.ndarray
    split: np.ndarray
    end: np.ndarray

    @functools.cached_property
    def weight(self) -> np.ndarray:
        left, right = self.split - self.start, self.end - self.split
        weight: np.ndarray = np.sqrt(left * right / (left + right))
        return weight

    @functools.cached_property
    def penalty(self) -> np.ndarray:
        """How much more the clearest of the many short intervals shows by chance than the whole.

        Dümbgen and Spokoiny 2001, Annals of Statistics 29:124.
        """
        penalty: np.ndarray = np.sqrt(2 * np.log(math.e * self.end.max() / (self.end - self.start)))
        return penalty


def change_points(values: np.ndarray) -> list[tuple[int, float]]:
    """The index of the first value of every new level, ascending, each with its p-value.

    `values` are (n,), finite, in the order of time. A series of fewer than FEWEST values has none.
    The same values give the same answer.
    """
    cuts = _segment(values, 0, len(values))
    # Each once more between its neighbours: one that they explain goes, others find their place.
    settled: list[tuple[int, float]] = []
    for i in range(len(cuts)):
        start = settled[-1][0] if settled else 0
        end = cuts[i + 1] if i + 1 < len(cuts) else len(values)
        found = _split(values[start:end])
        if found is not None:
            settled.append((start + found[0], found[1]))
    return settled


def shift(before: np.ndarray, after: np.ndarray, *, relative: bool) -> Shift:
    """How far the values `after` (k,) lie from those `before` (m,).

    `relative` asks for a ratio, which all values must be positive for.
    """
    if relative:
        before, after = np.log(before), np.log(after)
    differences = np.sort(np.subtract.outer(after, before), axis=None)
    m, k = len(before), len(after)
    depth = math.floor(m * k / 2 - Z_95 * math.sqrt(m * k * (m + k + 1) / 12))
    outside = max(depth, 1) - 1
    found = np.array([np.median(differences), differences[outside], differences[-1 - outside]])
    value, low, high = map(float, np.exp(found) if relative else found)
    return Shift(value, (low, high), relative)


def _segment(values: np.ndarray, start: int, end: int) -> list[int]:
    """Change points between `start` and `end`, the clearest first, then on either side of it."""
    found = _split(values[start:end])
    if found is None:
        return []
    cut = start + found[0]
    return [*_segment(values, start, cut), cut, *_segment(values, cut, end)]


def _split(values: np.ndarray) -> tuple[int, float] | None:
    """The clearest split and its p-value, or None when chance makes one as clear."""
    if len(values) < FEWEST:
        return None
    values = _winsorised(values)
    splits = _splits(len(values))
    observed = _cusums(values[None, :], splits)[0]
    best = int(observed.argmax())
    p = _p_value(values, splits, float(observed[best]))
    return None if p > LEVEL else (int(splits.split[best]), p)


def _winsorised(values: np.ndarray) -> np.ndarray:
    """Distances from the median in robust standard deviations, ±`_CLIP` at most.

    Where half of the values are the same, as with accuracies and sizes, every other one is far.
    """
    distances = values - np.median(values)
    scale = _MAD_TO_SD * np.median(np.abs(distances))
    clipped = np.clip(distances / scale, -_CLIP, _CLIP) if scale > 0 else np.sign(distances)
    spread = float(clipped.std())
    even: np.ndarray = clipped / spread if spread > 0 else clipped
    return even


def _cusums(series: np.ndarray, splits: _Splits) -> np.ndarray:
    """√(mk / (m + k)) · |difference of means| of every split; (series, n) → (series, splits)."""
    sums = np.zeros((len(series), series.shape[1] + 1))
    np.cumsum(series, axis=1, out=sums[:, 1:])
    middle = sums[:, splits.split]
    left = (middle - sums[:, splits.start]) / (splits.split - splits.start)
    right = (sums[:, splits.end] - middle) / (splits.end - splits.split)
    cusums: np.ndarray = np.abs(left - right) * splits.weight - splits.penalty
    return cusums


def _p_value(values: np.ndarray, splits: _Splits, observed: float) -> float:
    """The share of orders of the same values with a split as clear; it stops when that is too many.

    Sequential Monte Carlo p-value (Besag and Clifford 1991, Biometrika 78:301).
    """
    # The same values give the same answer; one seed for all would be unlucky for some lengths always.
    generator = np.random.default_rng(list(values.tobytes()))
    enough = math.floor(LEVEL * (_PERMUTATIONS + 1))
    # Sums of the same values in another order differ in their last digits.
    observed -= 1e-9 * max(1.0, observed)
    done = reached = 0
    batch = 32
    while done < _PERMUTATIONS and reached < enough:
        batch = min(batch, _PERMUTATIONS - done)
        orders = generator.permuted(np.tile(values, (batch, 1)), axis=1)
        reached += int((_cusums(orders, splits).max(1) >= observed).sum())
        done += batch
        batch = max(1, _BATCH // len(splits.split))
    return (reached + 1) / (done + 1)


@functools.lru_cache(maxsize=64)
def _splits(count: int) -> _Splits:
    """Splits of seeded intervals: lengths fall by √2, and neighbours of a length overlap by half."""
    intervals = {(0, count)}
    length = float(count)
    while length >= 2 * SHORTEST:
        places = 2 * math.ceil(count / length) - 1
        for i in range(places):
            start = math.floor(i * (count - length) / max(1, places - 1))
            intervals.add((start, min(count, math.ceil(start + length))))
        length /= math.sqrt(2)
    found = [
        (start, split, end)
        for start, end in sorted(intervals)
        for split in range(start + SHORTEST, end - SHORTEST + 1)
    ]
    return _Splits(*np.array(found).T)
