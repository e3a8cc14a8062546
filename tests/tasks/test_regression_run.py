"""Numbers from a table to a gated report, through the whole line; and what is refused on the way."""

import json

import numpy as np
import pytest
import yaml

import edgekd
from edgekd.config.schema import Config
from edgekd.errors import UsageError
from edgekd.pipeline.run import Run
from edgekd.tasks.check import check_task


def friedman(path, n=900):
    """Friedman's first function (1991) of five of six columns, in units far from 0 and 1."""
    random = np.random.default_rng(0)
    x = random.random((n, 6))
    y = (
        10 * np.sin(np.pi * x[:, 0] * x[:, 1])
        + 20 * (x[:, 2] - 0.5) ** 2
        + 10 * x[:, 3]
        + 5 * x[:, 4]
    )
    rows = np.column_stack([x, 1000 + 50 * y + random.normal(0, 20, n)])
    header = ",".join([*(f"x{i}" for i in range(6)), "watts"])
    np.savetxt(path, rows, fmt="%.5f", delimiter=",", header=header, comments="")


def config(folder, **more):
    friedman(folder / "power.csv")
    settings = {
        "name": "power",
        "data": {"source": "csv:power.csv"},
        "teacher": {
            "model": "zoo:mlp", "args": {"hidden": [64, 64]},
            "train": {"epochs": 25, "optimizer": "adamw", "learning_rate": 0.01},
        },
        "student": {"model": "zoo:mlp", "args": {"hidden": [16]}},
        "distill": {
            "methods": [{"mse": {"weight": 0.5}}], "alpha": 0.5,
            "epochs": 30, "optimizer": "adamw", "learning_rate": 0.02,
        },
        "quantize": {},
        "profile": {
            "min_seconds": 0.05, "max_seconds": 0.6, "interval": 0.5, "launches": 1, "operators": False,
        },
        "gate": {
            "on_inconclusive": "warn",
            "budgets": [
                {"metric": "r2", "min": "80 %"},
                {"metric": "r2_drop", "max": "10 points"},
                {"metric": "parity_error", "max": "1e-4"},
            ],
        },
    }  # fmt: skip
    path = folder / "power.yaml"
    path.write_text(yaml.safe_dump(settings | more))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power")
    return edgekd.compress(config(folder), out=folder / "run")


class TestTheLine:
    def test_numbers_in_the_units_of_the_data_come_out_of_every_file(self, run):
        with np.load(run.path / "verify/logits.npz") as arrays:
            watts = arrays["labels"][:, 0]
            for name in ("onnxruntime/teacher", "onnxruntime/student", "openvino/student-int8"):
                assert np.corrcoef(arrays[name][:, 0], watts)[0, 1] > 0.9
                assert abs(arrays[name].mean() - watts.mean()) < 20

    def test_the_score_is_r2_and_there_is_no_top_1_agreement(self, run):
        for found in run.verify.files:
            assert found.accuracy.metric == "r2"
            assert found.accuracy.value > 0.8
            assert found.agreement is found.teacher_agreement is None
        assert all(case.agreement is None for edge in run.verify.edges for case in edge.cases)

    def test_budgets_on_r2_are_decided(self, run):
        checks = {c.metric: c for c in run.gate.checks}
        assert checks["r2"].verdict == "pass"
        assert (
            checks["r2_drop"].interval[0] < checks["r2_drop"].value < checks["r2_drop"].interval[1]
        )

    def test_the_report_speaks_of_r2(self, run):
        text = (run.path / "report.html").read_text(encoding="utf-8")
        assert "Test R²" in text
        assert "validation R²" in text
        assert "accuracy" not in text.split("<body")[1].split("<footer")[0].lower()
        assert json.loads((run.path / "report.json").read_text())["classes"] == []

    def test_the_model_card_is_that_of_a_network_for_numbers(self, run):
        card = (run.path / "MODEL_CARD.md").read_text()
        assert "A network that gives numbers, 1 for a sample: zoo:mlp" in card
        assert "class" not in card.partition("## Recipe")[0]
        assert "logit" not in card
        assert "probabilities" not in card

    def test_the_card_says_what_the_outputs_are(self, run):
        card = run.card("student")
        assert (card.task, card.classes) == ("regression", ("watts",))
        assert card.output is not None
        assert 900 < card.output.mean[0] < 2000

    def test_a_run_that_is_up_to_date_does_nothing(self, run):
        before = (run.path / "run.json").read_bytes()
        edgekd.compress(run.path.parent / "power.yaml", out=run.path)
        assert (run.path / "run.json").read_bytes() == before

    def test_the_run_as_its_own_baseline_loses_nothing(self, run):
        from edgekd.gate.baseline import _accuracies
        from edgekd.gate.counterparts import RunBaseline

        found = list(_accuracies(run, RunBaseline(Run.open(run.path))))
        assert [f.value for f in found] == [0.0] * len(found)
        assert {f.note for f in found} == {"R²"}


@pytest.mark.slow
def test_what_is_for_classes_is_refused_where_the_teacher_is_done_too(run, tmp_path):
    for key in ("distill.methods=[kd: {}]", "distill.scheme=born_again"):
        with pytest.raises(UsageError, match=r"is for classification|is not for regression"):
            edgekd.distill(run.path, out=tmp_path / "other", overrides=[key])


def test_the_store_keeps_numbers_as_they_are(tmp_path):
    """Half precision has steps of 16 at 30,000, where these differ by 5."""
    random = np.random.default_rng(0)
    x = random.random((400, 3))
    y = 30_000 + 10 * x[:, 0] + 15 * x[:, 1] * x[:, 2]
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32), y=y)
    settings = {
        "data": {"source": f"npz:{tmp_path / 'd.npz'}"},
        "teacher": {
            "model": "zoo:mlp", "args": {"hidden": [64]},
            "train": {"epochs": 40, "optimizer": "adamw", "learning_rate": 0.01},
        },
        "student": {"model": "zoo:mlp", "args": {"hidden": [16]}},
        "distill": {"methods": ["mse"], "alpha": 0, "epochs": 40, "optimizer": "adamw",
                    "learning_rate": 0.02, "doctor": False},
    }  # fmt: skip
    run = edgekd.distill(settings, out=tmp_path / "runs/far")
    assert run.training("student").test.value > 0.8


def test_quantiles_hold_the_share_of_samples_that_they_say(tmp_path):
    path = config(
        tmp_path,
        data={"source": "csv:power.csv", "task": "quantile", "quantiles": [0.1, 0.5, 0.9]},
        quantize=None,
        gate={"budgets": [{"metric": "r1", "min": "40 %"}, {"metric": "r1_drop", "max": "10 points"}]},
    )  # fmt: skip
    run = edgekd.compress(path, out=tmp_path / "run")
    with np.load(run.path / "verify/logits.npz") as arrays:
        below = (arrays["labels"] < arrays["onnxruntime/student"]).mean(axis=0)
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.12)
    assert run.card("student").classes == ("watts at 0.1", "watts at 0.5", "watts at 0.9")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("distill", {"methods": [{"kd": {}}]}, "kd is not for regression"),
        ("data", {"augment": {"mixup": 0.2}}, "mixup and cutmix is for classification"),
        ("teacher", {"model": "records:a.npz"}, "a teacher of records: is for classification"),
        ("distill", {"scheme": "byot", "methods": []}, "scheme byot is for classification"),
        ("distill", {"transfer": {"labels": 0.5}, "methods": ["mse"]}, "a transfer set"),
        (
            "gate",
            {"budgets": [{"metric": "accuracy_drop", "max": "1 point"}]},
            "is not of regression",
        ),
        (
            "gate",
            {"budgets": [{"metric": "agreement", "min": "90 %"}]},
            "its score is r2: r2 and r2_",
        ),
        ("gate", {"budgets": [{"metric": "miou", "min": "90 %"}]}, "miou is not of regression"),
        ("export", {"preprocessing": "fold"}, "fold is for classification"),
        ("export", {"output": "softmax"}, "softmax is for classification"),
        ("export", {"ort": True}, "ORT format is for classification"),
    ],
)
def test_what_is_for_classes_alone_is_refused_with_its_key(key, value, told):
    settings = {"distill": {"methods": ["mse"]}, key: value}
    with pytest.raises(UsageError, match=told):
        check_task(Config.model_validate(settings), "regression", ())


def test_z_scores_of_two_logits_teach_nothing():
    config = Config.model_validate({"distill": {"methods": [{"kd": {"standardize": True}}]}})
    check_task(config, "classification", ("a", "b", "c"))
    with pytest.raises(UsageError, match=r"distill.methods.kd.standardize(.|\n)*two classes"):
        check_task(config, "classification", ("a", "b"))


def test_methods_that_work_are_named():
    with pytest.raises(UsageError) as caught:
        check_task(Config.model_validate({"distill": {"methods": ["kd"]}}), "regression", ())
    assert "mse" in str(caught.value)
    assert "dkd" not in str(caught.value)
