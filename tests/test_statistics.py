import numpy as np
import pytest
from scipy import stats

from edgekd.statistics import clopper_pearson, paired_difference, wilson


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (3, 10), (10, 10), (531, 540), (1, 1)])
def test_wilson_equals_scipys(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
    assert wilson(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (3, 10), (10, 10), (531, 540)])
def test_clopper_pearson_equals_scipys(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(0.99, method="exact")
    found = clopper_pearson(successes, total, 0.99)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


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


def test_the_paired_interval_excludes_zero_where_mcnemars_exact_test_rejects():
    disagreements = 0
    for lost in range(40):
        for gained in range(40):
            low, high = paired_difference(lost, gained, 10_000)
            rejected = lost + gained > 0 and stats.binomtest(lost, lost + gained).pvalue < 0.05
            disagreements += rejected != (low > 0 or high < 0)
    assert disagreements <= 0.03 * 40 * 40


def test_three_images_in_ten_thousand_are_no_difference():
    low, high = paired_difference(13, 10, 10_000)
    assert low < 0 < high
