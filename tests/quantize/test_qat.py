"""The whole way: train in float32, go on in INT8 with the same loss, deploy both files, verify them."""

import json

import numpy as np
import pytest

import edgekd
from edgekd.config.load import validate
from edgekd.errors import Interrupted, StageError, UsageError
from edgekd.pipeline.run import Run
from edgekd.profile.device.runtimes import load
from edgekd.progress import Lines
from edgekd.results import QuantizeReport

CONFIG = {
    "data": {"source": "digits"},
    "teacher": {"model": "zoo:mlp", "args": {"hidden": [64]}, "train": {"epochs": 4}},
    "student": {"model": "zoo:mlp", "args": {"hidden": [16]}},
    "distill": {"epochs": 4, "doctor": False},
    "quantize": {"qat": {"epochs": 2, "learning_rate": 0.002}},
    "history": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return edgekd.verify(CONFIG, out=tmp_path_factory.mktemp("runs") / "whole")


def weights(run):
    return (run.path / "quantized/student-int8.onnx").read_bytes()


@pytest.mark.slow
def test_both_files_are_what_was_trained_and_as_accurate_as_float32(run):
    report = run.quantize
    assert {(f.format, f.variant, f.trained) for f in report.files} == {
        ("onnx", "int8", True),
        ("openvino", "int8", True),
    }
    assert {p.runtime for p in report.qat.parity} == {"onnxruntime", "openvino"}
    assert all(p.max_error < 0.02 and p.agreement > 0.97 for p in report.qat.parity)
    assert len(report.qat.history.epochs) == 2
    # The distillation loss, not labels alone.
    assert set(report.qat.history.epochs[0].losses) == {"cross_entropy", "kd"}
    assert report.qat.validation_after >= report.qat.validation_f32 - 0.02
    files = {(f.format, f.variant): f for f in run.verify.files if f.role == "student"}
    for format in ("onnx", "openvino"):
        int8, f32 = files[format, "int8"], files[format, "f32"]
        assert int8.max_error < 0.02  # of the trained model, not of the float32 student
        assert int8.accuracy.value > f32.accuracy.value - 0.03


@pytest.mark.slow
def test_what_verify_compares_with_is_the_trained_model_on_the_test_split(run):
    config, base = run.manifest.config, run.path
    from pathlib import Path

    from edgekd.config.schema import Data
    from edgekd.data.resolve import load as load_data

    data = load_data(Data(**config["data"]), 0, Path.cwd())
    kept = np.load(base / "quantized/trained.npz")["logits"]
    inputs = data.tensor(data.test).numpy()
    session = load("onnxruntime", base / "quantized/student-int8.onnx", threads=1, precision="f32")
    found = session.run(inputs)[0]
    student = load("onnxruntime", base / "export/student.onnx", threads=1, precision="f32")
    largest = np.abs(kept).max()
    assert np.abs(found - kept).max() < 0.02 * largest
    # It is another function than the student's before.
    assert np.abs(student.run(inputs)[0] - kept).max() > 0.02 * largest


@pytest.mark.slow
def test_killed_while_training_it_goes_on_to_the_same_file(run, tmp_path, monkeypatch):
    from edgekd.distill import workshop

    real, stopped = workshop.train, []

    def interrupted(model, dataset, views, objective, config, **options):
        if options["name"] != "student in INT8":
            return real(model, dataset, views, objective, config, **options)

        class Stopping:
            """Knowledge of the teacher that is Ctrl-C at the ninth batch."""

            def __init__(self, known):
                self.known, self.calls = known, 0

            def __call__(self, *batch):
                self.calls += 1
                if self.calls == 9 and not stopped:
                    stopped.append(True)
                    raise Interrupted("stopped")
                return self.known(*batch)

        options["teacher"] = Stopping(options["teacher"])
        every = config.model_copy(update={"checkpoint_every": 0.0})
        return real(model, dataset, views, objective, every, **options)

    monkeypatch.setattr(workshop, "train", interrupted)
    with pytest.raises(Interrupted):
        edgekd.quantize(CONFIG, out=tmp_path / "again")
    assert not (tmp_path / "again/quantized").exists()
    assert list((tmp_path / "again").glob(".partial/quantize-*/checkpoint.pt"))
    again = edgekd.quantize(CONFIG, out=tmp_path / "again")
    assert stopped == [True]
    assert weights(again) == weights(run)
    assert not list((again.path / "quantized").glob("*checkpoint*"))


@pytest.mark.slow
def test_a_file_that_is_another_function_is_refused_and_nothing_is_written(
    run, tmp_path, monkeypatch
):
    import onnx

    from edgekd.quantize import qat

    real = qat.with_integer_weights

    def spoil(model):
        made = real(model)
        kinds = ((t.data_type, len(t.dims)) for t in made.graph.initializer)
        number = list(kinds).index((onnx.TensorProto.INT8, 2))
        tensor = made.graph.initializer[number]
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        return made

    monkeypatch.setattr(qat, "with_integer_weights", spoil)
    with pytest.raises(StageError, match=r"student-int8.onnx in onnxruntime: its logits differ"):
        edgekd.quantize(CONFIG, out=tmp_path / "spoiled")
    assert not (tmp_path / "spoiled/quantized").exists()
    assert "quantize" not in Run.open(tmp_path / "spoiled").manifest.stages


@pytest.mark.parametrize(("value", "epochs"), [(True, 3), ({}, 3), ({"epochs": 5}, 5)])
def test_true_is_qat_with_its_defaults(value, epochs):
    assert validate({"quantize": {"qat": value}}, where="c", lines={}).quantize.qat.epochs == epochs


def test_false_is_no_qat():
    assert validate({"quantize": {"qat": False}}, where="c", lines={}).quantize.qat is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.3, "has no unit: write '0.3 points'"),
        ("200 points", "is 200 points, not from 0 to 100"),
        ("-1 point", "is -1 points, not from 0 to 100"),
        ("much", "max_drop"),
    ],
)
def test_an_impossible_max_drop_is_told_when_it_is_read(value, message):
    with pytest.raises(UsageError, match=message):
        validate({"quantize": {"max_drop": value}}, where="c", lines={})


def test_qat_goes_without_ways_that_leave_layers_in_float32():
    for other in ({"max_drop": "1 point"}, {"speed_aware": True}):
        config = {**CONFIG, "quantize": {"qat": {}, **other}}
        with pytest.raises(UsageError, match="goes without max_drop and speed_aware"):
            validate(config, where="config", lines={})


@pytest.mark.slow
def test_recipes_without_integer_activations_cannot_be_trained(run):
    with pytest.raises(UsageError, match=r"qat.*'weights-int8' is weights-int8"):
        edgekd.quantize(run.path, overrides=["quantize.recipe=weights-int8"])
    kept = json.loads((run.path / "quantized/quantize.json").read_text())
    assert QuantizeReport.model_validate(kept).qat is not None


@pytest.mark.slow
def test_the_report_shows_how_it_was_trained(run):
    from edgekd.report.contents import read
    from edgekd.report.quantization import section

    shown = section(read(run))
    assert [plot.title for plot in shown.plots] == ["Training with fake quantization"]
    assert "<svg" in shown.plots[0].svg
    assert len(shown.plots[0].rows) == 2
    table = next(t for t in shown.tables if t.title == "Files against the trained model")
    assert {row[1] for row in table.rows} == {"onnxruntime", "openvino"}


@pytest.mark.slow
def test_what_qat_does_not_use_of_a_recipe_is_told(run, tmp_path, capsys):
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/odd.yaml").write_text(
        "{name: odd, samples: 99999, backend: onnxruntime, exclude: [nothing], smooth_quant: 0.5}"
    )
    config = tmp_path / "c.json"
    config.write_text(json.dumps({**CONFIG, "quantize": {"recipe": "odd", "qat": {"epochs": 1}}}))
    made = edgekd.quantize(config, out=tmp_path / "odd", progress=Lines())
    told = capsys.readouterr().err
    assert "does not use the recipe's exclude, smooth_quant, backend" in told
    assert "which is all there are; the recipe asks for 99999" in told
    assert made.quantize.qat is not None
