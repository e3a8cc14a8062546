"""INT8 files of both formats: close to the original, smaller, and reverted where that is asked."""

import numpy as np
import pytest

from edgekd.errors import StageError
from edgekd.profile.device.runtimes import load
from edgekd.quantize.backend import quantize, reduced_range
from edgekd.quantize.recipes import Recipe

FORMATS = {"onnx": ("onnxruntime", "onnx"), "openvino": ("openvino", "xml")}


def logits(format, path, inputs):
    return load(FORMATS[format][0], path, threads=1, precision="f32").run(inputs)[0]


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_is_smaller_and_answers_alike(exported, tmp_path, format):
    suffix = FORMATS[format][1]
    source = exported.folder / f"teacher.{suffix}"
    samples = list(exported.inputs[:, None])
    files = quantize(format, source, tmp_path / f"q.{suffix}", Recipe(name="r"), samples)
    assert all(path.is_file() for path in files)
    original = source if format == "onnx" else source.with_suffix(".bin")
    smaller = files[-1].stat().st_size / original.stat().st_size
    assert smaller < 0.35
    expected = logits(format, source, exported.inputs)
    found = logits(format, files[0], exported.inputs)
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("range", ["min-max", "mean-min-max", "percentile", "histogram"])
def test_every_range_works(exported, tmp_path, range):
    source = exported.folder / "student.onnx"
    recipe = Recipe(name="r", range=range, preset="performance")
    (path,) = quantize("onnx", source, tmp_path / "q.onnx", recipe, list(exported.inputs[:, None]))
    assert np.isfinite(logits("onnx", path, exported.inputs)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_layers_are_reverted_until_the_accuracy_holds(exported, tmp_path, format):
    suffix = FORMATS[format][1]
    source = exported.folder / f"student.{suffix}"
    expected = logits(format, source, exported.inputs)
    labels = expected.argmax(1)
    validation = [(x[None], int(y)) for x, y in zip(exported.inputs, labels, strict=True)]
    # Calibrated with inputs a thousand times too small, every activation saturates.
    samples = list(exported.inputs[:, None] / 1000)

    def accuracy(name, **options):
        path = quantize(
            format, source, tmp_path / f"{name}.{suffix}", Recipe(name="r"), samples, **options
        )[0]
        return (logits(format, path, exported.inputs).argmax(1) == labels).mean()

    assert accuracy("all") < 0.7
    assert accuracy("some", max_drop=0.05, validation=validation) >= 0.95


def test_excluded_nodes_stay_in_float32(exported, tmp_path):
    import onnx

    source = exported.folder / "student.onnx"
    samples = list(exported.inputs[:, None])

    def quantizers(**options):
        (path,) = quantize(
            "onnx", source, tmp_path / "q.onnx", Recipe(name="r", **options), samples
        )
        return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)

    first = next(n.name for n in onnx.load(source).graph.node if n.op_type == "Gemm")
    assert 0 < quantizers(exclude=[f".*{first}.*"]) < quantizers()
    with pytest.raises(StageError, match="cannot be quantized"):
        quantizers(exclude=["no_such_node"])


def test_what_is_no_model_is_one_clear_error(exported, tmp_path, capfd):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(StageError, match=r"bad\.onnx: cannot be quantized"):
        quantize("onnx", tmp_path / "bad.onnx", tmp_path / "q.onnx", Recipe(name="r"), [])
    assert not (tmp_path / "q.onnx").exists()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_older_x86_gets_a_reduced_range(monkeypatch):
    from edgekd.quantize import backend

    def machine(isa, architecture="x86_64"):
        monkeypatch.setattr(backend, "describe", lambda: {"architecture": architecture, "isa": isa})
        return reduced_range(Recipe(name="r"))

    assert machine(["avx2", "fma"]) is True
    assert machine(["avx512f", "avx512_vnni"]) is False
    assert machine(["asimd"], "aarch64") is False
    assert reduced_range(Recipe(name="r", reduced_range="on")) is True
