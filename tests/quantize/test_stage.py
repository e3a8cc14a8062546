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
from tests.heard import Heard

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
    """4-bit weights that may cost a point."""
    return line(
        tmp_path_factory.mktemp("stage") / "tiny", recipe="weights-int4", max_drop="1 point"
    )


@pytest.fixture(scope="module")
def timed(aware, tmp_path_factory):
    """The same with a second to look for slow layers; how many there are is the machine's affair."""
    path = tmp_path_factory.mktemp("timed") / "tiny"
    shutil.copytree(aware[0].path, path)
    return line(path, recipe="weights-int4", speed_aware=True, speed_seconds=1.0)


def test_the_files_have_the_accuracy_and_size_that_the_curve_says(aware):
    from edgekd.data.resolve import load

    run, config, base = aware
    data = load(config.data, config.data.seed, base)
    inputs, labels = data.tensor(data.validation).numpy(), data.labels[data.validation]
    report = run.quantize
    assert [a.format for a in report.accuracy_aware] == ["onnx", "openvino"]
    assert [file.name for file in report.files] == ["student-int4", "student-int4"]
    for found, file in zip(report.accuracy_aware, report.files, strict=True):

        def accuracy(path, format=file.format):
            return (logits(format, run.path / path, inputs).argmax(1) == labels).mean()

        original = next(
            f for f in run.export.files if (f.role, f.format) == ("student", file.format)
        )
        assert found.float32 == accuracy(original.path)
        kept = next(point for point in found.curve if point.reverted == found.reverted)
        assert kept.accuracy == accuracy(file.path) >= found.float32 - 0.01
        assert kept.size == pytest.approx(file.size, rel=0.02)
        assert found.samples == len(labels)
        assert found.curve[0].reverted == 0
        assert (found.reverted > 0) == bool(found.sensitivities)


def test_every_layer_is_measured_or_named(timed):
    run, _, _ = timed
    assert [s.format for s in run.quantize.speed_aware] == ["onnx", "openvino"]
    for found in run.quantize.speed_aware:
        measured = {speed.layer for speed in found.layers}
        assert len(measured) + len(found.left_out) == 3
        assert not measured & set(found.left_out)


def test_the_report_shows_the_trade_off_and_the_speeds(aware, timed):
    from edgekd.report.html import render

    for (run, config, base), title in (
        (aware, "Accuracy and size by layers in float32"),
        (timed, "Speed of layers"),
    ):
        run_line(
            config, base=base, out=run.path, until="quantize", progress=Silent(), command="test"
        )
        page = render(run)
        for format in ("onnx", "openvino"):
            assert f"{title}, {format}" in page
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


def test_the_faster_backend_of_several_is_taken_as_measured(aware, tmp_path):
    shutil.copytree(aware[0].path, tmp_path / "tiny")
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/open.yaml").write_text("{name: open, backend: auto, samples: 32}")
    config, _ = api.resolve({**TINY, "quantize": {"recipe": "open"}})
    run, _ = run_line(
        config, base=tmp_path, out=tmp_path / "tiny", until="quantize", progress=Silent(),
        command="test",
    )  # fmt: skip
    assert [(b.format, b.runtime) for b in run.quantize.backends] == [
        ("onnx", "onnxruntime"), ("openvino", "openvino"),
    ]  # fmt: skip
    for found, file in zip(run.quantize.backends, run.quantize.files, strict=True):
        assert found.backends.keys() == {"nncf", "onnxruntime"}
        assert found.backends[found.chosen] == min(found.backends.values()) > 0
        assert found.float32 > 0
        assert file.producer.startswith(found.chosen)


def test_a_backend_that_fails_leaves_it_to_the_other(aware, tmp_path):
    from edgekd.quantize import backend

    shutil.copytree(aware[0].path, tmp_path / "tiny")
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/open.yaml").write_text("{name: open, backend: auto, samples: 32}")
    config, _ = api.resolve({**TINY, "quantize": {"recipe": "open"}})
    backend.BACKENDS.get("nncf")  # registered before it is replaced

    def broken(*arguments):
        raise RuntimeError("an operator it does not know")

    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend.BACKENDS._entries, "nncf", broken)
        run, _ = run_line(
            config, base=tmp_path, out=tmp_path / "tiny", until="quantize",
            progress=heard, command="test",
        )  # fmt: skip
    assert all(file.producer.startswith("onnxruntime") for file in run.quantize.files)
    assert any("nncf does not quantize onnx: cannot be quantized" in line for line in heard.lines)
