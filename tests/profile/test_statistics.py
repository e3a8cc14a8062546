"""Quantiles and ratios: against numpy, and their intervals by simulation of noisy machines."""

import numpy as np
import pytest

from edgekd.profile.statistics import Samples, speedup, summarise


def machine(random, median, rounds=40, calls=50, noise=0.03, moments=None):
    """Samples whose rounds share a moment: log-normal calls times a factor per round."""
    moments = random.lognormal(0, noise, rounds) if moments is None else moments
    seconds = median * np.repeat(moments, calls) * random.lognormal(0, 0.02, rounds * calls)
    return Samples(seconds, np.repeat(np.arange(rounds, dtype=np.int32), calls))


def summary(samples):
    return summarise(samples, batch_size=1, steady=True, key="k")


def test_figures_are_those_of_the_samples():
    samples = machine(np.random.default_rng(0), 1e-3)
    result = summary(samples)
    assert result.count == 2000
    assert result.p50 == pytest.approx(np.median(samples.seconds), rel=1e-3)
    assert result.p90 == pytest.approx(np.quantile(samples.seconds, 0.9), rel=1e-2)
    assert result.p99 in samples.seconds
    assert (result.min, result.max) == (samples.seconds.min(), samples.seconds.max())
    assert result.mean == pytest.approx(samples.seconds.mean())
    for point, (low, high) in (
        (result.p50, result.p50_interval), (result.p90, result.p90_interval),
        (result.p99, result.p99_interval),
    ):  # fmt: skip
        assert low <= point <= high


def test_the_medians_interval_covers_it_although_calls_of_a_round_are_alike():
    random = np.random.default_rng(1)
    covered, naive = 0, 0
    for _ in range(200):
        samples = machine(random, 1.0)
        low, high = summary(samples).p50_interval
        covered += low <= 1.0 <= high
        spread = 1.96 * 1.2533 * samples.seconds.std() / np.sqrt(2000)
        naive += abs(np.median(samples.seconds) - 1) <= spread
    assert covered >= 180
    assert naive < 120  # what taking the calls for independent would have claimed to be 95 %


def test_intervals_are_reproducible():
    samples = machine(np.random.default_rng(2), 1e-3)
    assert summary(samples) == summary(samples)


@pytest.mark.parametrize("seconds", [[0.5], [0.5, 0.5, 0.5], [1.0, 2.0, 3.0]])
def test_few_samples_or_equal_ones_still_give_figures(seconds):
    samples = Samples(np.array(seconds), np.arange(len(seconds), dtype=np.int32))
    result = summary(samples)
    assert result.p50_interval == (min(seconds), max(seconds))
    assert result.p99 == max(seconds)


def test_a_drift_that_hits_both_cancels_in_the_speedup():
    random = np.random.default_rng(3)
    drift = np.linspace(1, 3, 40)
    teacher = machine(random, 8e-3, moments=drift)
    student = machine(random, 1e-3, moments=drift)
    ratio, (low, high) = speedup(teacher, student)
    assert ratio == pytest.approx(8, rel=0.02)
    assert (high - low) / ratio < 0.15
    alone = summary(teacher)
    assert (alone.p50_interval[1] - alone.p50_interval[0]) / alone.p50 > 0.25


def test_the_speedups_interval_covers_the_truth():
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        moments = random.lognormal(0, 0.1, 40)
        teacher = machine(random, 3.0, moments=moments * random.lognormal(0, 0.03, 40))
        student = machine(random, 1.0, moments=moments * random.lognormal(0, 0.03, 40))
        _, (low, high) = speedup(teacher, student)
        covered += low <= 3.0 <= high
    assert covered >= 180


def test_rounds_that_do_not_match_are_refused():
    random = np.random.default_rng(5)
    with pytest.raises(ValueError, match="same rounds"):
        speedup(machine(random, 1, rounds=10), machine(random, 1, rounds=11))
