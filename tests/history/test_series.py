"""Entries as series: what compares with what, and how a change reads."""

import numpy as np
import pytest

from edgekd.history.series import Filter, group, titles
from tests.history.entries import commit, days, entry


def only(entries, **wanted):
    (series,) = group(entries, Filter(**wanted))
    return series


def noisy(count=40, cut=25, step=1.05, scale=0.002, seed=0):
    values = scale * np.exp(0.01 * np.random.default_rng(seed).normal(size=count))
    values[cut:] *= step
    return values


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "pi"}, {"device": "another"}, {"device": None}, {"runtime": "openvino"},
        {"precision": "f16"}, {"threads": 2}, {"batch_size": 8}, {"variant": "int8"},
        {"metric": "latency_p99"}, {"run": "other"}, {"provenance": "emulated"},
    ],
)  # fmt: skip
def test_what_does_not_compare_is_another_series(changes):
    assert len(group([entry(), entry(1, **changes)], Filter())) == 2


@pytest.mark.parametrize(
    "changes",
    [{"runtime_version": "2"}, {"commit": "f" * 40}, {"noisy": True}, {"config": "d" * 64}],
)
def test_what_may_be_the_cause_is_the_same_series(changes):
    assert len(only([entry(), entry(1, **changes)]).entries) == 2


def test_series_of_one_place_are_told_apart_by_what_differs():
    series = group([entry(), entry(threads=2), entry(target="pi")], Filter())
    assert set(titles(series).values()) == {
        "local/onnxruntime/f32, 1 thread", "local/onnxruntime/f32, 2 threads",
        "pi/onnxruntime/f32",
    }  # fmt: skip


def test_a_change_names_its_commit_its_size_and_what_else_moved():
    entries = days(noisy(), runtime_version="1.30")
    entries[25:] = [e.model_copy(update={"runtime_version": "1.31"}) for e in entries[25:]]
    (change,) = only(entries).changes
    assert (change.first.commit, change.last.commit) == (commit(25), commit(24))
    assert change.points == (25, 15)
    assert change.better is False
    assert change.size.startswith("+")
    assert change.size.endswith("%]") or "%" in change.size
    assert change.shift.interval[0] < 1.05 < change.shift.interval[1]
    assert change.causes == ["onnxruntime 1.30 → 1.31"]


def test_a_level_that_moves_at_one_commit_may_be_the_machine():
    (change,) = only(days(noisy(), commit="f" * 40)).changes
    assert change.causes == [
        "the same commit before and after: it may be the machine, not the code"
    ]


@pytest.mark.parametrize(
    ("metric", "step", "better"),
    [
        ("latency_p50", 1.1, False), ("latency_p50", 0.9, True), ("throughput", 1.1, True),
        ("class_recall", 0.9, False), ("accuracy_drop", 1.1, False), ("user.top2", 1.1, None),
    ],
)  # fmt: skip
def test_whether_more_is_better_depends_on_the_metric(metric, step, better):
    (change,) = only(days(noisy(step=step, scale=0.5), metric=metric)).changes
    assert change.better is better


def test_accuracies_move_by_points_and_may_be_zero():
    values = np.where(np.arange(40) < 20, 0.02, 0.0)
    (change,) = only(days(values, metric="accuracy_drop")).changes
    assert change.size == "−2.0 points [−2.0, −2.0]"
    assert only(days(values, metric="accuracy_drop")).step == "="


def test_figures_against_a_baseline_are_not_searched():
    assert only(days(noisy(), metric="latency_vs_baseline")).changes == ()


def test_the_limit_is_of_the_newest():
    series = only(days(range(1, 41)), limit=10)
    assert list(series.values) == list(range(31, 41))
    assert series.step == "+2.6 %"
    assert series.sparkline(8) == "▁▂▃▄▅▆▇█"


def test_levels_cover_the_series():
    series = only(days(noisy()))
    assert [(start, end) for start, end, _ in series.levels] == [(0, 25), (25, 40)]
