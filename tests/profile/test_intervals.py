"""Order-statistic intervals against scipy's binomial, Student's against scipy's, and by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, t

from edgekd.profile.device.intervals import launches_interval, quantile_interval, quantile_ranks


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [6, 10, 59, 400, 5000, 100_000])
def test_ranks_are_the_tightest_that_hold_the_level_on_each_side(count, q):
    low, high = quantile_ranks(count, q)
    # The r-th order statistic (1-based) exceeds the quantile when fewer than r samples are below.
    if low is None:
        assert binom.cdf(0, count, q) > 0.025
    else:
        assert binom.cdf(low, count, q) <= 0.025 < binom.cdf(low + 1, count, q)
    if high is None:
        assert binom.cdf(count - 1, count, q) < 0.975
    else:
        assert binom.cdf(high, count, q) >= 0.975 > binom.cdf(high - 1, count, q)


def test_six_samples_are_the_least_that_bound_a_median():
    assert quantile_interval(np.arange(5.0), 0.5) is None
    assert quantile_interval(np.arange(6.0), 0.5) == (0.0, 5.0)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_it_covers_the_true_quantile_in_95_percent_of_experiments(q):
    random = np.random.default_rng(0)
    truth = -np.log(1 - q)
    intervals = [quantile_interval(random.exponential(size=800), q) for _ in range(2000)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.94 <= covered <= 0.985


@pytest.mark.parametrize("count", [2, 3, 5, 12, 21, 22, 40, 300])
def test_the_interval_of_launches_is_students_on_the_logarithms(count):
    values = np.random.default_rng(count).lognormal(-8, 0.02, count)
    logs = np.log(values)
    expected = t.interval(0.95, count - 1, logs.mean(), logs.std(ddof=1) / np.sqrt(count))
    assert np.log(launches_interval(values)) == pytest.approx(expected, rel=1e-4)


def test_launches_that_agree_to_the_last_digit_leave_no_doubt():
    assert launches_interval(np.full(3, 0.5)) == (pytest.approx(0.5), pytest.approx(0.5))
