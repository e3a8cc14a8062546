"""From samples to quantiles and ratios with intervals that hold on a machine that is not quiet.

Calls of one block share their moment, calls of one process where its memory lies: they are not
independent. From several launches, an interval is that of the mean over launches (Student's t on the
logarithms; Kalibera and Jones 2013). From a single one it comes from a bootstrap over whole rounds (Davison
and Hinkley 1997, §3.8), and speaks of that process alone. Either is never narrower than the
order-statistic interval of independent samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgekd.profile.device.intervals import launches_interval, quantile_ranks
from edgekd.results import Interval, Latency, SampleKind, Scenario

QUANTILES = (0.5, 0.9, 0.95, 0.99)
_RESAMPLES, _BINS = 1000, 4096


@dataclass(frozen=True)
class Samples:
    """Seconds of every call (n,), and the round and the launch (n,) each was made in, from 0."""

    seconds: np.ndarray
    rounds: np.ndarray
    launches: np.ndarray | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one launch."""
        return self.launches is not None and bool(self.launches[-1] > 0)

    def each_launch(self, figure: Callable[[np.ndarray], float]) -> np.ndarray:
        """A figure of the seconds of every launch, (launches,)."""
        if self.launches is None:
            return np.array([figure(self.seconds)])
        # Launches follow each other: their samples lie together.
        starts = np.flatnonzero(np.diff(self.launches)) + 1
        return np.array([figure(seconds) for seconds in np.split(self.seconds, starts)])


def summarise(
    samples: Samples,
    *,
    batch_size: int,
    steady: bool,
    key: str,
    kind: SampleKind = "call",
    seed: int = 0,
) -> Latency:
    """p50, p90, p95, p99 and mean with 95 % intervals; `key` says where the samples are kept.

    Where the samples are too few to bound a quantile, the least or the greatest one stands in.
    """
    ordered = np.sort(samples.seconds)
    points, intervals = [], []
    for q, around in zip(QUANTILES, _quantile_intervals(samples, seed), strict=True):
        point = _quantile(ordered, q)
        low_rank, high_rank = quantile_ranks(len(ordered), q)
        low = min(around[0], ordered[low_rank if low_rank is not None else 0], point)
        high = max(around[1], ordered[high_rank if high_rank is not None else -1], point)
        points.append(point)
        intervals.append((max(float(low), float(ordered[0])), min(float(high), float(ordered[-1]))))
    mean = float(ordered.mean())
    around = _mean_interval(samples, seed)
    return Latency(
        batch_size=batch_size,
        count=len(ordered),
        p50=points[0],
        p90=points[1],
        p95=points[2],
        p99=points[3],
        mean=mean,
        min=float(ordered[0]),
        max=float(ordered[-1]),
        p50_interval=intervals[0],
        p90_interval=intervals[1],
        p95_interval=intervals[2],
        p99_interval=intervals[3],
        mean_interval=(min(mean, around[0]), max(mean, around[1])),
        steady=steady,
        samples=key,
        kind=kind,
    )


def block_medians(seconds: np.ndarray, rounds: np.ndarray) -> dict[int, float]:
    """The median of the calls (n,) of each round (n,), by its number."""
    return {int(r): float(np.median(seconds[rounds == r])) for r in np.unique(rounds)}


def speedup(teacher: Samples, student: Samples, seed: int = 0) -> tuple[float, Interval]:
    """Teacher's median / student's median with its 95 % interval.

    Both were measured in the same launches and rounds, and are compared within these: what slows
    one down cancels.
    """
    if _count(teacher) != _count(student):
        raise ValueError("teacher and student were not measured in the same rounds")
    ratio = float(np.median(teacher.seconds) / np.median(student.seconds))
    if teacher.several and student.several:
        low, high = launches_interval(
            teacher.each_launch(np.median) / student.each_launch(np.median)
        )
    else:
        weights = _weights(_count(teacher), seed)
        medians = [_resampled_quantiles(samples, weights)[:, 0] for samples in (teacher, student)]
        low, high = map(float, np.quantile(medians[0] / medians[1], [0.025, 0.975]))
    return ratio, (min(low, ratio), max(high, ratio))


def scenarios(
    latency: Latency, latency_samples: Samples, throughput: Latency, multistream: Samples | None
) -> tuple[Scenario, ...]:
    """MLPerf Inference's figures for edge systems, where the samples suffice for them.

    SingleStream: queries of one sample, the 90th percentile; MultiStream: queries of 8, the 99th, both as
    loadgen's early stopping estimates them; Offline: samples per second. Like MLPerf, not MLPerf: the
    procedure is loadgen's, but in blocks by turns and for less than its 600 seconds (24,576 samples).
    """
    found = []
    single = latency.batch_size == 1 and latency.kind == "call"
    queries = {"SingleStream": (1, 0.9, latency_samples if single else None),
               "MultiStream": (8, 0.99, multistream)}  # fmt: skip
    for name, (size, q, samples) in queries.items():
        estimate = None if samples is None else early_stopping(samples.seconds, q)
        if samples is not None and estimate is not None:
            found.append(Scenario(name=name, batch_size=size, queries=len(samples.seconds),
                                  latency=estimate))  # fmt: skip
    return (*found, Scenario(name="Offline", batch_size=throughput.batch_size,
                             queries=throughput.count,
                             throughput=throughput.batch_size / throughput.mean))  # fmt: skip


def early_stopping(seconds: np.ndarray, q: float, confidence: float = 0.99) -> float | None:
    """A time that quantile `q` of the latency does not exceed, at this confidence; None: too few.

    The least order statistic with P(at most as many as lie above it and itself are beyond `q`) ≤
    1 − confidence. MLPerf Inference rules, "Early stopping"; loadgen's `early_stopping.cc` with
    tolerance 0: at least 64 queries for 0.9, and 662 for 0.99.
    """
    count = len(seconds)
    k = np.arange(count + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    chances = factorials[count] - factorials[k] - factorials[count - k]
    chances += k * math.log(1 - q) + (count - k) * math.log(q)
    # P(at most t of the queries are beyond the quantile), for t = 0, 1, …
    over = int(np.searchsorted(np.cumsum(np.exp(chances)), 1 - confidence, side="right")) - 1
    return None if over < 1 else float(np.sort(seconds)[count - over])


def _quantile_intervals(samples: Samples, seed: int) -> list[Interval]:
    if samples.several:
        each = (partial(_quantile, q=q) for q in QUANTILES)
        return [launches_interval(samples.each_launch(figure)) for figure in each]
    resampled = _resampled_quantiles(samples, _weights(_count(samples), seed))
    return [
        (float(low), float(high)) for low, high in np.quantile(resampled, [0.025, 0.975], axis=0).T
    ]


def _mean_interval(samples: Samples, seed: int) -> Interval:
    if samples.several:
        return launches_interval(samples.each_launch(np.mean))
    weights = _weights(_count(samples), seed)
    totals = weights @ np.bincount(samples.rounds, samples.seconds)
    low, high = np.quantile(totals / (weights @ np.bincount(samples.rounds)), [0.025, 0.975])
    return float(low), float(high)


def _quantile(seconds: np.ndarray, q: float) -> float:
    return float(np.quantile(seconds, q, method="inverted_cdf"))


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
