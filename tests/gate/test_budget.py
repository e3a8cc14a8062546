from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from edgekd.config.schema import Budget, Gate
from edgekd.errors import UsageError
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure, _recalls, enough
from edgekd.results import Accuracy


def gate(*budgets, on_inconclusive="fail"):
    return Gate(budgets=[Budget(**b) for b in budgets], on_inconclusive=on_inconclusive)


def latency(value, low, high, runtime="onnxruntime", conclusive=True):
    return Figure("latency_p50", value, (low, high), runtime, "local", conclusive)


AT_MOST_20_MS = {"metric": "latency_p50", "max": "20 ms"}


@pytest.mark.parametrize(
    ("figure", "verdict", "code"),
    [
        (latency(0.010, 0.009, 0.011), "pass", 0),
        (latency(0.030, 0.029, 0.031), "fail", 1),
        (latency(0.019, 0.017, 0.021), "inconclusive", 4),
        (latency(0.021, 0.019, 0.023), "inconclusive", 4),
        (latency(0.020, 0.020, 0.020), "pass", 0),
        (latency(0.003, 0.0001, 0.0199), "pass", 0),
        # One process only: others may differ by more than this is below the limit.
        (latency(0.016, 0.015, 0.017, conclusive=False), "inconclusive", 4),
        (latency(0.010, 0.009, 0.011, conclusive=False), "pass", 0),
        (latency(0.030, 0.029, 0.031, conclusive=False), "fail", 1),
    ],
)
def test_the_whole_interval_must_be_on_one_side_of_the_limit(figure, verdict, code):
    report = check_budgets(gate(AT_MOST_20_MS), [figure])
    assert (report.verdict, report.exit_code) == (verdict, code)


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.010, "pass"), (0.030, "inconclusive"), (0.020, "inconclusive")]
)
def test_what_a_disturbed_machine_breaks_is_undecided_and_what_it_keeps_holds(value, verdict):
    figure = Figure(
        "latency_p50", value, (value - 1e-3, value + 1e-3), "onnxruntime", "local", noisy=True
    )
    report = check_budgets(gate(AT_MOST_20_MS), [figure])
    assert report.verdict == verdict
    assert "disturbed" in report.checks[0].text


@pytest.mark.parametrize("policy", ["warn", "pass"])
def test_the_policy_lets_an_undecided_budget_through_but_says_so(policy):
    report = check_budgets(gate(AT_MOST_20_MS, on_inconclusive=policy), [latency(0.02, 0.01, 0.03)])
    assert (report.verdict, report.exit_code) == ("inconclusive", 0)


def test_a_broken_budget_outweighs_an_undecided_one():
    figures = [latency(0.02, 0.01, 0.03, "openvino"), latency(0.03, 0.029, 0.031)]
    report = check_budgets(gate(AT_MOST_20_MS), figures)
    assert [check.verdict for check in report.checks] == ["inconclusive", "fail"]
    assert report.exit_code == 1


def test_a_lower_limit_works_the_other_way_round():
    figure = Figure("speedup", 4.0, (3.5, 4.5), "onnxruntime", "local")
    assert check_budgets(gate({"metric": "speedup", "min": "3 x"}), [figure]).verdict == "pass"
    assert check_budgets(gate({"metric": "speedup", "min": "5 x"}), [figure]).verdict == "fail"
    assert (
        check_budgets(gate({"metric": "speedup", "min": "4 x"}), [figure]).verdict == "inconclusive"
    )


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (0.007, (-0.002, 0.016), "pass"),
        (0.012, (0.001, 0.023), "inconclusive"),
        (0.040, (0.020, 0.060), "fail"),
    ],
)
def test_accuracy_passes_by_its_count_and_fails_only_beyond_doubt(value, interval, verdict):
    figure = Figure("accuracy_drop", value, interval, "onnxruntime")
    report = check_budgets(gate({"metric": "accuracy_drop", "max": "1 point"}), [figure])
    assert report.verdict == verdict
    straddling = verdict == "pass"
    assert ("by the count; the interval straddles" in report.checks[0].text) == straddling


@pytest.mark.parametrize(
    ("launches", "conclusive", "expected"), [(5, False, True), (1, True, True), (1, False, False)]
)
def test_only_of_a_lone_process_that_should_not_be_is_the_interval_in_doubt(
    launches, conclusive, expected
):
    assert enough(SimpleNamespace(launches=launches, conclusive=conclusive)) is expected


def test_exact_figures_are_compared_as_they_are():
    figure = Figure("size", 1000, None, "onnxruntime", "local")
    assert check_budgets(gate({"metric": "size", "max": "1 kB"}), [figure]).verdict == "pass"
    assert check_budgets(gate({"metric": "size", "max": "999 B"}), [figure]).verdict == "fail"


def test_a_budget_may_speak_of_one_runtime_only():
    figures = [latency(0.01, 0.009, 0.011), latency(0.03, 0.029, 0.031, "openvino")]
    report = check_budgets(gate(AT_MOST_20_MS | {"runtime": "onnxruntime"}), figures)
    assert [check.runtime for check in report.checks] == ["onnxruntime"]
    assert report.exit_code == 0


def test_a_budget_that_nothing_was_measured_for_is_an_error_not_a_pass():
    with pytest.raises(UsageError, match=r"gate\.budgets\.0.*tensorrt") as caught:
        check_budgets(gate(AT_MOST_20_MS | {"runtime": "tensorrt"}), [latency(0.01, 0.01, 0.01)])
    assert "onnxruntime" in str(caught.value)


def test_without_budgets_the_gate_passes():
    assert check_budgets(gate(), [latency(1, 1, 1)]).exit_code == 0


def test_a_check_reads_as_a_sentence():
    (check,) = check_budgets(gate(AT_MOST_20_MS), [latency(0.03, 0.029, 0.031)]).checks
    assert check.text == "latency_p50 on local/onnxruntime: 30 ms [29 ms, 31 ms], budget ≤ 20 ms"


@pytest.mark.parametrize("small", ["int8", "int4"])
def test_a_budget_without_a_variant_is_on_what_ships_and_parity_on_the_export(small):
    def figure(metric, variant, value):
        return Figure(metric, value, None, "onnxruntime", "local", True, variant)

    figures = [
        figure("size", "f32", 900), figure("size", small, 300),
        figure("parity_error", "f32", 1e-6), figure("parity_error", small, 0.02),
    ]  # fmt: skip

    def verdicts(*budgets):
        report = check_budgets(Gate(budgets=[Budget(**b) for b in budgets]), figures)
        return [(check.variant, check.verdict) for check in report.checks]

    assert verdicts({"metric": "size", "max": "500 B"}) == [(small, "pass")]
    assert verdicts({"metric": "size", "max": "500 B", "variant": "f32"}) == [("f32", "fail")]
    assert verdicts({"metric": "parity_error", "max": 1e-4}) == [("f32", "pass")]
    figures = [f for f in figures if f.variant == "f32"]
    assert verdicts({"metric": "size", "max": "500 B"}) == [("f32", "fail")]
    with pytest.raises(UsageError, match=f"variant {small}"):
        verdicts({"metric": "size", "max": "500 B", "variant": small})


def test_some_class_is_always_the_worst_by_chance_and_that_breaks_no_floor():
    """20 classes of recall 0.9, floor 0.9: the worst of them is not surely below it."""
    random = np.random.default_rng(0)
    budget = gate({"metric": "class_recall", "min": "90 %"})
    broken = 0
    for _ in range(300):
        counts = tuple((int(random.binomial(50, 0.9)), 50) for _ in range(20))
        broken += check_budgets(budget, [recall(counts)]).verdict == "fail"
    assert broken / 300 <= 0.05
    counts = (*[(45, 50)] * 19, (30, 50))
    check = check_budgets(budget, [recall(counts)]).checks[0]
    assert check.verdict == "fail"
    assert "class '19'" in check.text


def recall(counts):
    classes = tuple(map(str, range(len(counts))))
    total = sum(n for _, n in counts)
    correct = sum(c for c, _ in counts)
    accuracy = Accuracy(
        correct=correct, total=total, value=correct / total, interval=(0, 1), per_class=counts
    )
    found = list(_recalls(accuracy, classes, partial(Figure, runtime="onnxruntime")))
    assert len(found) == len(counts) + 1
    return found[-1]
