"""Where a level moved: rarely for nothing, nearly always at the right place."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from edgekd.history.changepoints import FEWEST, SHORTEST, change_points, shift

NOISE = 0.015


def series(seed, count, kind="normal"):
    random = np.random.default_rng(seed)
    noise = {
        "normal": random.normal(size=count),
        "heavy": random.standard_t(2, size=count),
        "lumpy": random.choice([-1.0, 1.0], size=count) + 0.2 * random.normal(size=count),
    }[kind]
    return np.exp(NOISE * noise)


@pytest.mark.parametrize("kind", ["normal", "heavy", "lumpy"])
@pytest.mark.parametrize("count", [50, 100])
def test_noise_alone_moves_nothing(kind, count):
    found = [change_points(series(seed, count, kind)) for seed in range(100)]
    assert sum(map(bool, found)) <= 1


def test_five_percent_is_found_at_its_place():
    found = 0
    for seed in range(40):
        values = series(seed, 60)
        cut = 10 + seed
        values[cut:] *= 1.05
        places = [place for place, _ in change_points(values)]
        assert len(places) <= 2
        found += any(abs(place - cut) <= 2 for place in places)
    assert found >= 38


def test_a_fall_and_a_later_rise_are_two():
    values = series(3, 90)
    values[30:60] *= 0.93
    places = [place for place, _ in change_points(values)]
    assert places == pytest.approx([30, 60], abs=2)
    assert all(p <= 0.001 for _, p in change_points(values))


def test_figures_without_noise_move_where_they_do():
    values = np.full(40, 37181.0)
    assert change_points(values) == []
    values[25:] += 4
    assert [place for place, _ in change_points(values)] == [25]


@pytest.mark.parametrize("place", [0, 20, 38, 39])
def test_outliers_are_no_level(place):
    values = series(5, 40)
    values[place : place + SHORTEST - 2] *= 3
    assert change_points(values) == []


def test_a_short_history_has_none():
    values = np.array([1.0] * 6 + [2.0] * 7)
    assert len(values) < FEWEST
    assert change_points(values) == []
    assert change_points(np.append(values, [2.0, 2.0, 2.0])) != []


def test_the_same_values_give_the_same_answer():
    values = series(8, 60)
    values[30:] *= 1.03
    assert change_points(values) == change_points(values.copy())


def test_the_size_is_hodges_and_lehmanns_and_its_interval_is_the_rank_tests():
    random = np.random.default_rng(1)
    for moved in (0.0, 0.5, 1.0, 1.5):
        before, after = random.normal(size=15), random.normal(size=20) + moved
        found = shift(before, after, relative=False)
        assert found.value == pytest.approx(np.median([b - a for a in before for b in after]))
        low, high = found.interval
        # Just inside the interval the shifted samples do not differ; just outside they do.
        for at, inside in ((low + 1e-9, 1), (low - 1e-9, -1), (high - 1e-9, 1), (high + 1e-9, -1)):
            p = mannwhitneyu(after - at, before, method="asymptotic", use_continuity=False).pvalue
            assert (p - 0.05) * inside > -0.006


def test_a_relative_size_is_a_ratio():
    before, after = series(1, 30), 1.1 * series(2, 30)
    found = shift(before, after, relative=True)
    assert found.relative
    assert found.interval[0] < 1.1 < found.interval[1]
    doubled = shift(2 * before, 2 * after, relative=True)
    assert doubled.value == pytest.approx(found.value)
