"""Quantiles and ratios: against numpy, and their intervals by simulation of noisy machines."""

import numpy as np
import pytest
from scipy.stats import binom

from edgekd.profile.statistics import Samples, early_stopping, scenarios, speedup, summarise


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
    assert result.p95 == pytest.approx(np.quantile(samples.seconds, 0.95), rel=1e-2)
    assert result.p99 in samples.seconds
    assert (result.min, result.max) == (samples.seconds.min(), samples.seconds.max())
    assert result.mean == pytest.approx(samples.seconds.mean())
    for point, (low, high) in (
        (result.p50, result.p50_interval), (result.p90, result.p90_interval),
        (result.p95, result.p95_interval), (result.p99, result.p99_interval),
        (result.mean, result.mean_interval),
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


@pytest.mark.slow
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


def launched(random, median, launches=5, spread=0.02, factors=None):
    """Samples of several processes, each of which is a little faster or slower for life."""
    factors = random.lognormal(0, spread, launches) if factors is None else factors
    each = [machine(random, median * factor, rounds=4, noise=0.005) for factor in factors]
    return Samples(
        np.concatenate([samples.seconds for samples in each]),
        np.concatenate([samples.rounds + 4 * i for i, samples in enumerate(each)]),
        np.repeat(np.arange(len(each)), [len(samples.seconds) for samples in each]),
    )


def test_two_measurements_of_a_file_agree_although_its_processes_differ():
    random = np.random.default_rng(6)
    covered, apart, apart_alone = 0, 0, 0
    for _ in range(300):
        pair = [launched(random, 1.0) for _ in range(2)]
        intervals = [summary(samples).p50_interval for samples in pair]
        covered += intervals[0][0] <= 1.0 <= intervals[0][1]
        apart += max(i[0] for i in intervals) > min(i[1] for i in intervals)
        alone = [summary(Samples(s.seconds[:200], s.rounds[:200])).p50_interval for s in pair]
        apart_alone += max(i[0] for i in alone) > min(i[1] for i in alone)
    assert covered >= 0.92 * 300
    assert apart <= 0.03 * 300
    assert apart_alone >= 0.4 * 300  # what one process each would have claimed


def test_the_speedups_interval_covers_the_truth_although_processes_differ():
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        low, high = speedup(launched(random, 3.0), launched(random, 1.0))[1]
        covered += low <= 3.0 <= high
    assert covered >= 0.92 * 300


def test_what_slows_a_whole_launch_down_cancels_in_the_speedup():
    random = np.random.default_rng(8)
    moments = np.array([1.0, 1.5, 3.0, 1.2, 2.0])
    teacher, student = (launched(random, m, factors=moments) for m in (8e-3, 1e-3))
    ratio, (low, high) = speedup(teacher, student)
    assert low <= ratio <= high
    assert (high - low) / 8 < 0.05
    p50 = summary(teacher)
    assert (p50.p50_interval[1] - p50.p50_interval[0]) / p50.p50 > 0.5


def test_no_interval_goes_beyond_the_samples():
    samples = launched(np.random.default_rng(9), 1.0, factors=np.array([1.0, 1.0, 9.0]))
    result = summary(samples)
    for low, high in (result.p50_interval, result.p90_interval, result.p99_interval):
        assert result.min <= low <= high <= result.max


@pytest.mark.parametrize(("q", "fewest"), [(0.9, 64), (0.99, 662)])
def test_early_stopping_is_loadgens(q, fewest):
    """64 and 662 are what MLPerf's rules name for its percentiles; the rest by brute force."""
    assert early_stopping(np.arange(fewest - 1.0), q) is None
    assert early_stopping(np.arange(float(fewest)), q) == fewest - 1
    for count in (fewest + 40, 5000):
        over = max(t for t in range(1, count) if binom.cdf(t, count, 1 - q) <= 0.01)
        assert early_stopping(np.arange(float(count)), q) == count - over


def test_early_stopping_is_no_less_than_the_percentile_in_99_of_100_runs():
    random = np.random.default_rng(10)
    truth = -np.log(0.1)
    assert (
        np.mean([early_stopping(random.exponential(size=300), 0.9) >= truth for _ in range(2000)])
        > 0.98
    )


def test_scenarios_are_given_where_there_are_samples_enough():
    random = np.random.default_rng(11)
    one, many = machine(random, 1e-3), machine(random, 2e-2, rounds=40, calls=2)
    found = scenarios(summary(one), one, summarise(many, batch_size=32, steady=True, key="k"), many)
    by_name = {scenario.name: scenario for scenario in found}
    assert list(by_name) == ["SingleStream", "Offline"]  # 80 queries are too few for a p99
    assert by_name["SingleStream"].latency >= np.quantile(one.seconds, 0.9)
    assert by_name["Offline"].throughput == pytest.approx(32 * 80 / many.seconds.sum())
    batched = summarise(one, batch_size=4, steady=True, key="k")
    names = [s.name for s in scenarios(batched, one, batched, machine(random, 1e-3))]
    assert names == ["MultiStream", "Offline"]
