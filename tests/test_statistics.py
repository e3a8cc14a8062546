import numpy as np
import pytest
from scipy import stats

from edgekd.statistics import paired_difference, wilson


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (3, 10), (10, 10), (531, 540), (1, 1)])
def test_wilson_equals_scipys(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
    assert wilson(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("p12", "p21", "n"), [(0.02, 0.01, 540), (0.002, 0.002, 2000)])
def test_the_paired_interval_covers_the_true_difference(p12, p21, n):
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [p12, p21, 1 - p12 - p21], size=4000)
    covered = 0
    for first, second, _ in draws:
        low, high = paired_difference(first, second, n)
        covered += low <= p12 - p21 <= high
    assert covered / len(draws) >= 0.94
