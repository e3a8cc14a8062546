"""INT8 files of both formats: close to the original, smaller, one function; bad input is one clear error."""

import numpy as np
import onnx
import pytest

from edgekd.errors import StageError
from edgekd.profile.device.runtimes import load
from edgekd.profile.targets import Target
from edgekd.quantize.backend import Types, quantize, types, write
from edgekd.quantize.recipes import Recipe

FULL = Types(reduced_range=False, signed=False)
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
SUFFIXES = {"onnx": "onnx", "openvino": "xml"}


def logits(format, path, inputs):
    return load(RUNTIMES[format], path, threads=1, precision="f32").run(inputs)[0]


def samples(exported):
    return list(exported.inputs[:, None])


@pytest.mark.parametrize("backend", ["nncf", "onnxruntime"])
def test_both_formats_are_smaller_and_answer_alike(exported, tmp_path, backend):
    source = exported.folder / "teacher.onnx"
    model = quantize(source, Recipe(name="r", backend=backend), samples(exported), FULL)
    expected = logits("onnx", source, exported.inputs)
    found = {}
    for format, suffix in SUFFIXES.items():
        files = write(model, format, tmp_path / f"q.{suffix}")
        assert all(path.is_file() for path in files)
        weights = source if format == "onnx" else exported.folder / "teacher.bin"
        assert files[-1].stat().st_size < 0.35 * weights.stat().st_size
        found[format] = logits(format, files[0], exported.inputs)
        assert 0 < np.abs(found[format] - expected).max() < 0.1 * np.abs(expected).max()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.bin", "q.onnx", "q.xml"]
    # One function: nothing is left between them but where a value falls between two levels.
    assert np.abs(found["onnx"] - found["openvino"]).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(
    "options",
    [
        {"range": "mean-min-max", "preset": "performance"},
        {"range": "percentile", "percentile": 99.0},
        {"range": "mse", "bias_correction": "none"},
        {"bias_correction": "accurate"},
        {"backend": "onnxruntime", "range": "percentile"},
        {"backend": "onnxruntime", "range": "entropy", "preset": "performance"},
    ],
    ids=str,
)
def test_every_algorithm_follows_the_original(exported, options):
    from edgekd.quantize.accuracy import run_onnx

    source = exported.folder / "student.onnx"
    model = quantize(source, Recipe(name="r", **options), samples(exported), FULL)
    expected = logits("onnx", source, exported.inputs)
    found = run_onnx(model, exported.inputs)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.8


def activation_ends(model):
    """The largest value that each activation's quantizer can hold."""
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    ends = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (tensors[name] for name in node.input[1:])
            ends.append(float((np.iinfo(zero.dtype).max - int(zero)) * scale))
    return np.array(ends)


def test_min_max_reaches_the_extremes_of_all_samples_and_percentiles_cut_them(exported):
    source, inputs = exported.folder / "student.onnx", samples(exported)
    for backend in ("nncf", "onnxruntime"):
        whole = activation_ends(quantize(source, Recipe(name="r", backend=backend), inputs, FULL))
        cut = Recipe(name="r", backend=backend, range="percentile", percentile=90.0)
        assert whole[0] == pytest.approx(exported.inputs.max(), rel=0.02)
        assert (activation_ends(quantize(source, cut, inputs, FULL))[0] < 0.8 * whole[0]).all()


@pytest.mark.parametrize("backend", ["nncf", "onnxruntime"])
def test_a_reduced_range_has_weights_of_seven_bits(exported, backend):
    source = exported.folder / "student.onnx"
    recipe = Recipe(name="r", backend=backend)

    def most(reduced):
        model = quantize(source, recipe, samples(exported), Types(reduced, False))
        weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
        return max(
            np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in weights if t.dims
        )

    assert most(False) > 64
    assert most(True) <= 64


def test_excluded_nodes_stay_in_float32(exported):
    source = exported.folder / "student.onnx"

    def quantizers(**options):
        model = quantize(source, Recipe(name="r", **options), samples(exported), FULL)
        return sum(node.op_type == "DequantizeLinear" for node in model.graph.node)

    first = next(n.name for n in onnx.load(source).graph.node if n.op_type == "Gemm")
    assert 0 < quantizers(exclude=[first]) < quantizers()
    with pytest.raises(StageError, match="no node is called 'no_such_node'"):
        quantizers(exclude=["no_such_node"])


def bad(exported, kind):
    whole = samples(exported)
    return {
        "none": [],
        "shape": [*whole[:3], np.zeros((1, 1, 9, 8), np.float32)],
        "rank": [np.zeros((1, 64), np.float32)],
        "nan": [*whole[:2], np.full((1, 1, 8, 8), np.nan, np.float32)],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "no samples to calibrate with"),
        ("shape", r"sample 3 has the shape \(1, 9, 8\); the model takes \(1, 8, 8\)"),
        ("rank", r"sample 0 has the shape \(64,\)"),
        ("nan", "sample 2 has values that are not finite"),
    ],
)
def test_samples_that_do_not_fit_are_one_clear_error(exported, kind, words):
    with pytest.raises(StageError, match=words):
        quantize(exported.folder / "student.onnx", Recipe(name="r"), bad(exported, kind), FULL)


def test_what_is_no_model_is_one_clear_error(tmp_path, capfd):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(StageError, match=r"bad\.onnx: cannot be quantized"):
        quantize(tmp_path / "bad.onnx", Recipe(name="r"), [], FULL)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_an_operator_that_the_runtime_lacks_is_one_clear_error(exported, tmp_path):
    model = onnx.load(exported.folder / "student.onnx")
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Rolu"
    onnx.save(model, tmp_path / "odd.onnx")
    for backend in ("nncf", "onnxruntime"):
        with pytest.raises(StageError, match=r"odd\.onnx: cannot be quantized") as caught:
            quantize(
                tmp_path / "odd.onnx", Recipe(name="r", backend=backend), samples(exported), FULL
            )
        assert "Rolu" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["nncf", "onnxruntime"])
def test_a_layer_that_is_constant_does_no_harm(exported, tmp_path, backend):
    from edgekd.quantize.accuracy import run_onnx

    model = onnx.load(exported.folder / "student.onnx")
    # Without weights and bias the layer gives zeros, whatever comes.
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    for tensor in model.graph.initializer:
        if tensor.name in gemm.input:
            zeros = np.zeros_like(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    onnx.save(model, tmp_path / "flat.onnx")
    recipe = Recipe(name="r", backend=backend)
    quantized = quantize(tmp_path / "flat.onnx", recipe, samples(exported), FULL)
    expected = run_onnx(model, exported.inputs)
    assert np.allclose(run_onnx(quantized, exported.inputs), expected, atol=0.02)


def test_nothing_is_left_behind_where_openvino_refuses(exported, tmp_path):
    model = onnx.load(exported.folder / "student.onnx")
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Rolu"
    with pytest.raises(StageError, match="OpenVINO cannot convert"):
        write(model, "openvino", tmp_path / "q.xml")
    assert not list(tmp_path.iterdir())


def target(**options):
    return Target.model_validate({"name": "t", "class": "edge", **options})


def test_types_go_by_the_targets_descriptors_not_by_this_machine(monkeypatch):
    from edgekd.quantize import backend

    here = {"architecture": "x86_64", "isa": ["avx2", "fma"]}
    monkeypatch.setattr(backend, "describe", lambda: here)
    recipe, pi = Recipe(name="r"), target(arch="aarch64", transport="ssh", ssh={"host": "pi"})
    old = target(arch="x86_64", isa=["avx2"])
    new = target(arch="x86_64", isa=["avx2", "avx512_vnni"])
    assert types(recipe) == types(recipe, [target()]) == Types(True, False)
    assert types(recipe, [pi]) == Types(False, True)
    assert types(recipe, [new]) == Types(False, False)
    # One file for all: whatever the least able needs.
    assert types(recipe, [new, old, pi]) == Types(True, False)
    # Of another x86 machine nothing is known: it may be an old one.
    assert types(recipe, [target(arch="x86_64", transport="ssh", ssh={"host": "h"})]).reduced_range
    here["isa"].append("avx_vnni")
    assert types(recipe, [target()]) == Types(False, False)
    assert types(Recipe(name="r", reduced_range="on"), [new]).reduced_range


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"range": "entropy"}, "range entropy needs backend: onnxruntime"),
        ({"range": "mse", "backend": "onnxruntime"}, "range mse needs backend: nncf"),
        ({"smooth_quant": 0.5}, "needs model_type: transformer"),
    ],
)
def test_a_recipe_that_its_backend_cannot_follow_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Recipe(name="r", **options)
