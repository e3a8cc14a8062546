import pytest

from edgekd.config.schema import Budget
from edgekd.errors import UsageError
from edgekd.results import Accuracy
from edgekd.search.budgets import left, on_accuracy, on_cost, variants
from edgekd.search.records import Cost, Costs


def costs(p50=10e-6, size=1000.0, interval=None, variant="f32", runtime="onnxruntime"):
    about = {"target": "local", "runtime": runtime, "variant": variant}
    return Costs(figures=(
        Cost(metric="latency_p50", value=p50, interval=interval, **about),
        Cost(metric="size", value=size, **about),
    ))  # fmt: skip


def accuracy(correct, total=100):
    share = correct / total
    return Accuracy(correct=correct, total=total, value=share, interval=(share - 0.05, share + 0.05),
                    per_class=())  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "interval", "verdict", "beyond"),
    [
        ("20 us", None, "pass", 1.0),
        ("5 us", None, "fail", 2.0),
        ("9 us", (8e-6, 12e-6), "inconclusive", 10 / 9),
        ("11 us", (8e-6, 12e-6), "inconclusive", 1.0),
    ],
)
def test_a_limit_on_latency(limit, interval, verdict, beyond):
    (found,) = on_cost(
        [Budget(metric="latency_p50", max=limit)], costs(interval=interval), None, "f32"
    )
    assert (found.verdict, found.beyond) == (verdict, pytest.approx(beyond))
    assert found.holds == (beyond <= 1)


def test_ratios_are_of_the_teachers_file_in_the_same_runtime():
    budgets = [Budget(metric="speedup", min="3 x"), Budget(metric="compression", min="5 x")]
    fast, small = on_cost(budgets, costs(), costs(p50=40e-6, size=4000.0), "f32")
    assert (fast.value, fast.verdict) == (pytest.approx(4), "pass")
    assert (small.value, small.verdict) == (4, "fail")
    assert "1.25 times too little" in small.text


def test_of_several_runtimes_the_worst_counts_unless_one_is_named():
    both = Costs(figures=(*costs().figures, *costs(p50=30e-6, runtime="openvino").figures))
    (any_,) = on_cost([Budget(metric="latency_p50", max="20 us")], both, None, "f32")
    (named,) = on_cost(
        [Budget(metric="latency_p50", max="20 us", runtime="onnxruntime")], both, None, "f32"
    )
    assert (any_.place, any_.holds, named.holds) == ("local/openvino", False, True)


def test_a_budget_that_nothing_answers_is_an_error_with_what_is_known():
    with pytest.raises(UsageError, match="nothing tells energy") as caught:
        on_cost([Budget(metric="energy", max="1 mJ")], costs(), None, "f32")
    assert caught.value.where == "gate.budgets.0"
    assert "latency_p50, size" in caught.value.fix


def test_accuracy_is_held_against_the_validation_split_and_the_teachers():
    budgets = [
        Budget(metric="accuracy_drop", max="2 points"),
        Budget(metric="accuracy", min="80 %"),
        Budget(metric="agreement", min="95 %"),
    ]
    drop, share, agreement = on_accuracy(budgets, accuracy(85), accuracy(90), 0.96)
    assert (drop.value, drop.holds) == (pytest.approx(0.05), False)
    assert "3.00 points too much" in drop.text
    assert (share.holds, agreement.holds) == (True, True)


def test_what_is_only_known_in_the_end_is_left_to_the_gate():
    assert left([Budget(metric="parity_error", max=1e-3), Budget(metric="size", max="1 MB")]) == [
        "parity_error"
    ]


def test_a_budget_on_quantized_files_leaves_no_choice_of_precision():
    bound = Budget(metric="size", max="1 MB", variant="int8")
    free = Budget(metric="size", max="1 MB")
    assert variants([free], "int8") == ["f32", "int8"]
    assert variants([free, bound], "int8") == ["int8"]
    assert variants([free], None) == ["f32"]
