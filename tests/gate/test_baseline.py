"""Against a baseline: launches until decided, paired accuracy, and what must not be compared."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from edgekd.config.schema import Budget, Gate
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure
from edgekd.gate.launches import LOOKS, compare


def launches(ratio, noise, seed):
    random = np.random.default_rng(seed)
    return (math.log(ratio) + noise * random.normal() for _ in itertools.count())


def decided(limit):
    return lambda interval: not interval[0] <= limit <= interval[1]


def outcomes(ratio, noise, limit=1.03, experiments=400):
    """How often a latency budget of `limit` passes, fails, and stays undecided."""
    verdicts = []
    for seed in range(experiments):
        value, interval, conclusive = compare(launches(ratio, noise, seed), decided(limit))
        figure = Figure("latency_vs_baseline", value, interval, "onnxruntime", "local", conclusive)
        gate = Gate(budgets=[Budget(metric="latency_vs_baseline", max=f"{limit} x")])
        verdicts.append(check_budgets(gate, [figure]).verdict)
    return {v: verdicts.count(v) / experiments for v in ("pass", "fail", "inconclusive")}


def test_the_quantiles_are_students():
    for count, quantile in LOOKS:
        assert quantile == pytest.approx(student_t.ppf(0.995, count - 1), abs=1e-3)


def test_the_same_speed_is_never_called_slower_and_five_percent_is_caught():
    assert outcomes(1.0, 0.02)["fail"] <= 0.01
    assert outcomes(1.0, 0.02)["pass"] >= 0.95
    assert outcomes(1.05, 0.01)["fail"] >= 0.95


def test_at_the_limit_itself_verdicts_are_rare():
    found = outcomes(1.03, 0.01)
    assert found["inconclusive"] >= 0.95
    assert found["fail"] <= 0.02


def test_a_clear_case_ends_at_the_first_look():
    count = itertools.count()
    source = (next(count) * 0 + math.log(2) + 0.001 * (-1) ** i for i in itertools.count())
    taken = []
    value, interval, conclusive = compare(source, decided(1.03), lambda n, **_: taken.append(n))
    assert conclusive
    assert len(taken) == LOOKS[0][0]
    assert value == pytest.approx(2)
    assert interval[0] > 1.9


def test_accuracy_fails_only_for_what_chance_does_not_explain():
    def verdict(value, low, high):
        figure = Figure("accuracy_vs_baseline", value, (low, high), "onnxruntime")
        gate = Gate(budgets=[Budget(metric="accuracy_vs_baseline", max="0 points")])
        return check_budgets(gate, [figure]).verdict

    assert verdict(0.0003, -0.001, 0.002) == "pass"
    assert verdict(0.02, 0.01, 0.03) == "fail"
    assert verdict(-0.01, -0.02, 0.0) == "pass"


def test_a_baseline_without_budgets_brings_the_default_ones():
    assert Gate().all_budgets == []
    assert [b.metric for b in Gate(baseline="x").all_budgets] == [
        "latency_vs_baseline", "accuracy_vs_baseline", "memory_vs_baseline", "size_vs_baseline",
    ]  # fmt: skip
    own = [Budget(metric="size_vs_baseline", max="1 x")]
    assert Gate(baseline="x", budgets=own).all_budgets == own
