"""The stage on real data: what it records is what its files do, and the report shows it."""

import shutil

import numpy as np
import pytest

from edgekd import api
from edgekd.errors import StageError, UsageError
from edgekd.pipeline.line import run_line
from edgekd.pipeline.run import Run
from edgekd.progress import Silent
from edgekd.quantize.sensitivity import logits

pytest.importorskip("nncf")
pytestmark = pytest.mark.slow

TINY = {
    "name": "tiny",
    "teacher": {"model": "zoo:mlp", "args": {"hidden": [64]}, "train": {"epochs": 4, "threads": 1}},
    "student": {"model": "zoo:mlp", "args": {"hidden": [32, 32]}},
    "distill": {"epochs": 4, "threads": 1},
    "history": None,
}


def line(out, until="quantize", **quantize):
    config, base = api.resolve({**TINY, "quantize": quantize})
    return run_line(
        config, base=base, out=out, until=until, progress=Silent(), command="test"
    )[0], config, base  # fmt: skip


@pytest.fixture(scope="module")
def aware(tmp_path_factory):
    """4-bit weights that may cost nothing, and a second to look for slow layers."""
    return line(
        tmp_path_factory.mktemp("stage") / "tiny",
        recipe="weights-int4", max_drop="0 points", speed_aware=True, speed_seconds=1.0,
    )  # fmt: skip


def test_the_files_have_the_accuracy_and_size_that_the_curve_says(aware):
    from edgekd.data.resolve import load

    run, config, base = aware
    data = load(config.data, config.data.seed, base)
    inputs, labels = data.tensor(data.validation).numpy(), data.labels[data.validation]
    report = run.quantize
    assert [a.format for a in report.accuracy_aware] == ["onnx", "openvino"]
    for found, file in zip(report.accuracy_aware, report.files, strict=True):

        def accuracy(path, format=file.format):
            return (logits(format, run.path / path, inputs).argmax(1) == labels).mean()

        original = next(
            f for f in run.export.files if (f.role, f.format) == ("student", file.format)
        )
        assert found.float32 == accuracy(original.path)
        kept = next(point for point in found.curve if point.reverted == found.reverted)
        assert kept.accuracy == accuracy(file.path) >= found.float32
        assert kept.size == pytest.approx(file.size, rel=0.02)
        assert found.samples == len(labels)
        assert found.curve[0].reverted == 0
        assert (found.reverted > 0) == bool(found.sensitivities)


def test_every_layer_is_measured_or_named(aware):
    run, _, _ = aware
    for found in run.quantize.speed_aware:
        measured = {speed.layer for speed in found.layers}
        assert len(measured) + len(found.left_out) == 3
        assert not measured & set(found.left_out)


def test_the_report_shows_the_trade_off(aware):
    run, config, base = aware
    run_line(config, base=base, out=run.path, until="quantize", progress=Silent(), command="test")
    from edgekd.report.html import render

    page = render(run)
    for format in ("onnx", "openvino"):
        assert f"Accuracy and size by layers in float32, {format}" in page
        assert f"Speed of layers, {format}" in page
    assert "weights-int4" in page


def test_nothing_is_left_of_an_attempt_that_fails(aware, tmp_path, monkeypatch):
    from edgekd.quantize import stage

    def none(*_):
        return np.array([], np.int64)

    shutil.copytree(aware[0].path, tmp_path / "tiny")
    before = aware[0].quantize
    monkeypatch.setattr(stage, "calibration_samples", none)
    with pytest.raises(StageError, match="no calibration samples"):
        line(tmp_path / "tiny")
    assert not list((tmp_path / "tiny").rglob("*.tmp"))
    assert Run(tmp_path / "tiny").quantize == before


def test_a_recipe_that_does_not_fit_the_formats_is_a_usage_error(aware, tmp_path):
    shutil.copytree(aware[0].path, tmp_path / "tiny")
    config, base = api.resolve(
        {**TINY, "quantize": {"recipe": "kl"}, "export": {"formats": ["openvino"]}}
    )
    with pytest.raises(UsageError, match=r"add onnx to export\.formats"):
        run_line(
            config, base=base, out=tmp_path / "tiny", until="quantize",
            progress=Silent(), command="test",
        )  # fmt: skip
