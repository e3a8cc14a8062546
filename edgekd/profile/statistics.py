"""From samples to quantiles and ratios with intervals that hold on a machine that is not quiet.

Calls of one block share their moment: they are not independent. Intervals come from a bootstrap over
whole rounds (Davison and Hinkley 1997, §3.8), and are never narrower than the order-statistic interval of
independent samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.profile.device.intervals import quantile_ranks
from edgekd.results import Interval, Latency, SampleKind

QUANTILES = (0.5, 0.9, 0.99)
_RESAMPLES, _BINS = 1000, 4096


@dataclass(frozen=True)
class Samples:
    """Seconds of every call (n,), and the round (n,) each was made in, from 0."""

    seconds: np.ndarray
    rounds: np.ndarray


def summarise(
    samples: Samples,
    *,
    batch_size: int,
    steady: bool,
    key: str,
    kind: SampleKind = "call",
    seed: int = 0,
) -> Latency:
    """p50, p90, p99 with 95 % intervals; `key` says where the samples are kept.

    Where the samples are too few to bound a quantile, the least or the greatest one stands in.
    """
    ordered = np.sort(samples.seconds)
    resampled = _resampled_quantiles(samples, _weights(_count(samples), seed))
    points, intervals = [], []
    for position, q in enumerate(QUANTILES):
        low, high = np.quantile(resampled[:, position], [0.025, 0.975])
        low_rank, high_rank = quantile_ranks(len(ordered), q)
        point = float(np.quantile(ordered, q, method="inverted_cdf"))
        low = min(low, ordered[low_rank if low_rank is not None else 0], point)
        high = max(high, ordered[high_rank if high_rank is not None else -1], point)
        points.append(point)
        intervals.append((float(low), float(high)))
    return Latency(
        batch_size=batch_size,
        count=len(ordered),
        p50=points[0],
        p90=points[1],
        p99=points[2],
        mean=float(ordered.mean()),
        min=float(ordered[0]),
        max=float(ordered[-1]),
        p50_interval=intervals[0],
        p90_interval=intervals[1],
        p99_interval=intervals[2],
        steady=steady,
        samples=key,
        kind=kind,
    )


def speedup(teacher: Samples, student: Samples, seed: int = 0) -> tuple[float, Interval]:
    """Teacher's median / student's median with its 95 % interval.

    Both were measured in the same rounds, and the same rounds are resampled for both: what slows
    a round down cancels.
    """
    if _count(teacher) != _count(student):
        raise ValueError("teacher and student were not measured in the same rounds")
    weights = _weights(_count(teacher), seed)
    medians = [_resampled_quantiles(samples, weights)[:, 0] for samples in (teacher, student)]
    ratio = float(np.median(teacher.seconds) / np.median(student.seconds))
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return ratio, (min(float(low), ratio), max(float(high), ratio))


def _count(samples: Samples) -> int:
    return int(samples.rounds[-1]) + 1


def _weights(rounds: int, seed: int) -> np.ndarray:
    """How often each round is drawn, (resamples, rounds)."""
    random = np.random.default_rng(seed)
    return random.multinomial(rounds, np.full(rounds, 1 / rounds), size=_RESAMPLES)


def _resampled_quantiles(samples: Samples, weights: np.ndarray) -> np.ndarray:
    """The quantiles of every resample, (resamples, quantiles).

    A resample is a weighted sum of the rounds' histograms, over bins that hold about equally
    many samples each.
    """
    edges = np.unique(np.quantile(samples.seconds, np.linspace(0, 1, _BINS), method="inverted_cdf"))
    bins = np.searchsorted(edges, samples.seconds)
    histogram = np.zeros((weights.shape[1], len(edges)))
    np.add.at(histogram, (samples.rounds, bins), 1)
    cumulated = np.cumsum(weights @ histogram, axis=1)
    wanted = np.array(QUANTILES) * cumulated[:, -1:]
    # The first bin whose cumulated count reaches the wanted one: the inverse of the CDF.
    found = [np.argmax(cumulated >= wanted[:, [i]] - 1e-9, axis=1) for i in range(len(QUANTILES))]
    quantiles: np.ndarray = edges[np.stack(found, axis=1)]
    return quantiles
