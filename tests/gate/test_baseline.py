"""Against a baseline: launches until decided, paired accuracy, and what must not be compared."""

import itertools
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student_t

from edgekd.config.schema import Budget, Gate
from edgekd.gate.again import width_to_decide
from edgekd.gate.baseline import Pair, _budgets_on
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


def slowly(monkeypatch, seconds):
    """A source of undecided launches that take that long each, by a clock of the test's own."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def launch(i):
        now[0] += seconds
        return math.log(1.03) + 0.01 * (-1) ** i

    return map(launch, itertools.count())


@pytest.mark.parametrize(("each", "taken"), [(100, 6), (5, 12), (2.5, 24)])
def test_a_comparison_ends_at_the_last_look_that_is_in_time(monkeypatch, each, taken):
    count = []
    value, interval, conclusive = compare(
        slowly(monkeypatch, each), decided(1.03), lambda n, **_: count.append(n), seconds=60
    )
    assert len(count) == taken
    assert not conclusive
    assert interval[0] < 1.03 < interval[1]
    assert value == pytest.approx(1.03)


def test_only_budgets_on_the_pair_make_it_measured():
    def pair(runtime, variant="f32", target="local"):
        return Pair(SimpleNamespace(runtime=runtime, target=target, variant=variant), None)

    def on(pair, *budgets, shipped="f32"):
        gate = Gate(baseline="x", budgets=[Budget(**b) for b in budgets])
        return [(b.metric, b.bound) for b in _budgets_on(pair, gate, shipped)]

    everywhere = [("latency_vs_baseline", "1.03 x"), ("memory_vs_baseline", "1.1 x")]
    assert on(pair("openvino")) == everywhere
    one = {"metric": "latency_vs_baseline", "max": "1.2 x", "runtime": "onnxruntime"}
    other = {"metric": "memory_vs_baseline", "max": "2 x", "runtime": "onnxruntime"}
    assert on(pair("openvino"), one, other) == []
    assert on(pair("onnxruntime"), one, other) == [
        ("latency_vs_baseline", "1.2 x"), ("memory_vs_baseline", "2 x"),
    ]  # fmt: skip
    assert on(pair("onnxruntime", target="pi"), one | {"target": "local"}, other) == [
        ("memory_vs_baseline", "2 x")
    ]
    # A budget without a variant is on what ships.
    assert on(pair("onnxruntime"), shipped="int8") == []
    assert on(pair("onnxruntime", "int8"), shipped="int8") == everywhere


def test_the_width_that_decides_is_half_the_way_to_the_limit():
    gate = Gate(budgets=[Budget(metric="latency_p50", max="20 ms")])

    def width(value, metric="latency_p50"):
        figure = Figure(metric, value, (value / 2, value * 2), "onnxruntime", "local")
        limits = Gate(budgets=[Budget(metric=metric, max="20 ms")])
        return width_to_decide(gate, check_budgets(limits, [figure]).checks)

    assert width(0.018) == pytest.approx(math.log(20 / 18) / 2)
    assert width(0.020) == 0.005
    assert width(1e-9) == 0.5
    assert width(0.018, "latency_p99") < 1e-5  # that no profile watches


def test_accuracy_fails_only_for_what_chance_does_not_explain():
    def check(value, low, high):
        figure = Figure("accuracy_vs_baseline", value, (low, high), "onnxruntime")
        gate = Gate(budgets=[Budget(metric="accuracy_vs_baseline", max="0 points")])
        return check_budgets(gate, [figure]).checks[0]

    def verdict(*figure):
        return check(*figure).verdict

    def text(*figure):
        return check(*figure).text

    assert verdict(0.0003, -0.001, 0.002) == "pass"
    assert "(within chance)" in text(0.0003, -0.001, 0.002)
    assert verdict(0.02, 0.01, 0.03) == "fail"
    assert verdict(-0.01, -0.02, 0.0) == "pass"


def test_a_baseline_without_budgets_brings_the_default_ones():
    assert Gate().all_budgets == []
    assert [b.metric for b in Gate(baseline="x").all_budgets] == [
        "latency_vs_baseline", "accuracy_vs_baseline", "memory_vs_baseline", "size_vs_baseline",
    ]  # fmt: skip
    own = [Budget(metric="size_vs_baseline", max="1 x")]
    found = {b.metric: b.bound for b in Gate(baseline="x", budgets=own).all_budgets}
    assert found == {
        "size_vs_baseline": "1 x", "latency_vs_baseline": "1.03 x",
        "accuracy_vs_baseline": "0 points", "memory_vs_baseline": "1.1 x",
    }  # fmt: skip
