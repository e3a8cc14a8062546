"""INT8 files of both formats by both libraries: close to the original, smaller, layers left out at will."""

import re

import numpy as np
import pytest

from edgekd.errors import StageError, UsageError
from edgekd.profile.device.runtimes import load
from edgekd.profile.targets import Target
from edgekd.quantize.arithmetic import arithmetic
from edgekd.quantize.backend import Source, prepare, quantize, usable
from edgekd.quantize.recipes import RECIPES, Recipe

pytest.importorskip("nncf")

FORMATS = {"onnx": ("onnxruntime", "onnx"), "openvino": ("openvino", "xml")}
RECIPE = Recipe(name="r")


def logits(format, path, inputs):
    return load(FORMATS[format][0], path, threads=1, precision="f32").run(inputs)[0]


def snr(reference, answer):
    return 10 * np.log10((reference**2).sum() / ((reference - answer) ** 2).sum())


def source(exported, format, role="teacher"):
    return Source(
        format,
        exported.folder / f"{role}.{FORMATS[format][1]}",
        exported.folder / f"{role}.onnx",
    )


def prepared(exported, format, recipe=RECIPE, role="teacher", **options):
    samples = list(exported.inputs[:, None])
    return prepare(source(exported, format, role), recipe, samples, arithmetic(recipe), **options)


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_file_is_smaller_and_answers_alike(exported, tmp_path, format, by):
    suffix = FORMATS[format][1]
    recipe = Recipe(name="r", backend=by)
    made = prepared(exported, format, recipe)
    assert made.producer.startswith(by)
    files = made.write(tmp_path / f"q.{suffix}")
    original = exported.folder / f"teacher.{suffix}"
    weights = original if format == "onnx" else original.with_suffix(".bin")
    assert files[-1].stat().st_size / weights.stat().st_size < 0.27
    expected = logits(format, original, exported.inputs)
    assert 30 < snr(expected, logits(format, files[0], exported.inputs)) < 60


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
@pytest.mark.parametrize("format", FORMATS)
def test_layers_left_in_float32_make_the_file_larger_and_truer(exported, tmp_path, format, by):
    suffix = FORMATS[format][1]
    made = prepared(exported, format, Recipe(name="r", backend=by))
    expected = logits(format, exported.folder / f"teacher.{suffix}", exported.inputs)
    sizes, errors = [], []
    for count in range(len(made.layers) + 1):
        files = made.write(tmp_path / f"q{count}.{suffix}", made.layers[:count])
        sizes.append(files[-1].stat().st_size)
        errors.append(np.abs(logits(format, files[0], exported.inputs) - expected).max())
    assert len(sizes) >= 4
    assert sizes == sorted(sizes)
    assert errors[-1] < 1e-4 * np.abs(expected).max() < errors[0]


def test_the_same_choice_of_layers_gives_the_same_file(exported, tmp_path):
    for by in ("nncf", "onnxruntime"):
        made = prepared(exported, "onnx", Recipe(name="r", backend=by))
        first = made.write(tmp_path / "a.onnx")[0].read_bytes()
        made.write(tmp_path / "b.onnx", made.layers[:1])
        again = made.write(tmp_path / "c.onnx")[0]
        assert np.array_equal(
            logits("onnx", again, exported.inputs),
            logits("onnx", tmp_path / "a.onnx", exported.inputs),
        )
        assert len(again.read_bytes()) == len(first)


@pytest.mark.parametrize(
    ("range", "backends"),
    [
        ("min-max", ["nncf", "onnxruntime"]),
        ("mean-min-max", ["nncf", "onnxruntime"]),
        ("percentile", ["nncf", "onnxruntime"]),
        ("mse", ["nncf"]),
        ("entropy", ["onnxruntime"]),
    ],
)
def test_every_range_works_where_it_is_offered(exported, tmp_path, range, backends):
    recipe = Recipe(name="r", range=range, backend="auto", preset="performance")
    assert usable(source(exported, "onnx"), recipe) == backends
    expected = logits("onnx", exported.folder / "teacher.onnx", exported.inputs)
    for by in backends:
        made = prepared(exported, "onnx", recipe, by=by)
        answer = logits("onnx", made.write(tmp_path / f"{by}.onnx")[0], exported.inputs)
        assert snr(expected, answer) > 15


@pytest.mark.parametrize(("by", "range"), [("nncf", "percentile"), ("onnxruntime", "entropy")])
def test_an_outlier_widens_the_extremes_alone(exported, tmp_path, by, range):
    inputs = exported.inputs.copy()
    inputs[0, 0, 0, 0] = 1000
    expected = logits("onnx", exported.folder / "teacher.onnx", exported.inputs[1:])

    def found(range):
        recipe = Recipe(name="r", range=range, backend=by)
        made = prepare(source(exported, "onnx"), recipe, list(inputs[:, None]), arithmetic(recipe))
        path = made.write(tmp_path / f"{range}.onnx")[0]
        return snr(expected, logits("onnx", path, exported.inputs[1:]))

    assert found(range) > found("min-max") + 6


@pytest.mark.parametrize("correction", ["none", "fast", "accurate"])
def test_bias_correction_takes_the_shift_of_the_outputs_out(exported, tmp_path, correction):
    recipe = Recipe(name="r", bias_correction=correction)
    samples = list(exported.inputs[:, None])
    path = quantize("onnx", exported.folder / "teacher.onnx", tmp_path / "q.onnx", recipe, samples)[
        0
    ]
    expected = logits("onnx", exported.folder / "teacher.onnx", exported.inputs)
    shift = np.abs((logits("onnx", path, exported.inputs) - expected).mean(axis=0)).mean()
    plain = Recipe(name="r", bias_correction="none")
    quantize("onnx", exported.folder / "teacher.onnx", tmp_path / "p.onnx", plain, samples)
    before = logits("onnx", tmp_path / "p.onnx", exported.inputs) - expected
    uncorrected = np.abs(before.mean(axis=0)).mean()
    assert shift == uncorrected if correction == "none" else shift < 0.8 * uncorrected


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("method", ["dynamic", "weights-int8", "weights-int4"])
def test_weights_alone_and_dynamic_quantization(exported, tmp_path, format, method):
    suffix = FORMATS[format][1]
    made = prepared(exported, format, Recipe(name="r", method=method, backend="auto"))
    assert len(made.layers) == 3
    expected = logits(format, exported.folder / f"teacher.{suffix}", exported.inputs)
    original = made.write(tmp_path / f"o.{suffix}", made.layers)
    files = made.write(tmp_path / f"q.{suffix}")
    found = snr(expected, logits(format, files[0], exported.inputs))
    size = files[-1].stat().st_size / original[-1].stat().st_size
    if method == "weights-int4":
        assert 12 < found < 30
        assert size < 0.17
    else:
        assert found > 30
        assert size < 0.3
    np.testing.assert_allclose(
        logits(format, original[0], exported.inputs), expected, rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_smooth_quant_leaves_the_function_as_it_is_where_layers_are_reverted(tmp_path):
    """NNCF's own reversion puts weights back that SmoothQuant had scaled, and keeps the other half."""
    import torch

    from edgekd.config.schema import Export, Teacher
    from edgekd.export.exporter import EXPORTERS
    from edgekd.export.exporter import Source as Exportable
    from edgekd.models.resolve import build
    from edgekd.results import InputSpec, ModelCard

    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    args = {"depth": 1, "dim": 16, "heads": 2}
    module = build("zoo:vit", args, input_shape=(1, 8, 8), classes=10, seed=0, base=tmp_path).eval()
    card = ModelCard(
        role="student", model=Teacher().model, args={}, classes=tuple("0123456789"), seed=0,
        input=InputSpec(shape=(1, 8, 8), scale=1, mean=(0,), std=(1,)), parameters=1,
    )  # fmt: skip
    path = tmp_path / "student.onnx"
    EXPORTERS.get("onnx")(Exportable(module, card, x[:2], path), tmp_path, Export())
    recipe = Recipe(name="r", model_type="transformer", smooth_quant=0.5)
    made = prepare(Source("onnx", path, path), recipe, list(x.numpy()[:, None]), arithmetic(recipe))
    expected = logits("onnx", path, x.numpy())
    for left in (made.layers, made.layers[::2]):
        answer = logits("onnx", made.write(tmp_path / "q.onnx", left)[0], x.numpy())
        assert snr(expected, answer) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("format", FORMATS)
def test_recurrent_networks_are_quantized_around_what_nncf_cannot_tell_apart(
    tmp_path, name, format
):
    import torch

    from edgekd.config.schema import Export
    from edgekd.export.exporter import EXPORTERS
    from edgekd.export.exporter import Source as Exportable
    from edgekd.models.resolve import build
    from edgekd.results import InputSpec, ModelCard

    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    shape = (1, 8, 8)
    module = build(f"zoo:{name}", {}, input_shape=shape, classes=10, seed=0, base=tmp_path).eval()
    card = ModelCard(
        role="student", model=name, args={}, classes=tuple("0123456789"), seed=0, parameters=None,
        input=InputSpec(shape=shape, scale=1, mean=(0,), std=(1,)),
    )  # fmt: skip
    whole = tmp_path / "student.onnx"
    exportable = Exportable(module, card, x[:2], whole)
    EXPORTERS.get("onnx")(exportable, tmp_path, Export())
    made = EXPORTERS.get(format)(exportable, tmp_path, Export(producer="onnx")).path
    found = prepare(
        Source(format, made, whole), RECIPE, list(x.numpy()[:, None]), arithmetic(RECIPE)
    )
    path = found.write(tmp_path / f"q.{FORMATS[format][1]}")[0]
    assert snr(logits(format, made, x.numpy()), logits(format, path, x.numpy())) > 20
    told = [note for note in found.notes if "NNCF cannot tell apart" in note]
    assert bool(told) == (name == "lstm" and format == "openvino")


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
def test_excluded_nodes_stay_in_float32(exported, tmp_path, by):
    import onnx

    path = exported.folder / "student.onnx"

    def quantizers(**options):
        recipe = Recipe(name="r", backend=by, **options)
        made = prepared(exported, "onnx", recipe, role="student").write(tmp_path / "q.onnx")[0]
        return sum(node.op_type == "QuantizeLinear" for node in onnx.load(made).graph.node)

    first = next(n.name for n in onnx.load(path).graph.node if n.op_type == "Gemm")
    assert 0 < quantizers(exclude=[f".*{first}.*"]) < quantizers()
    assert quantizers(exclude=["no_such_node", f".*{first}.*"]) < quantizers()
    with pytest.raises(
        UsageError, match=r"exclude: no node of student\.onnx .*no_such_node"
    ) as told:
        quantizers(exclude=["no_such_node"])
    assert first in told.value.fix


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_model_is_one_clear_error(exported, tmp_path, capfd, format):
    suffix = FORMATS[format][1]
    bad = tmp_path / f"bad.{suffix}"
    bad.write_bytes(b"not a model")
    missing = tmp_path / f"missing.{suffix}"
    cut = tmp_path / f"cut.{suffix}"
    whole = (exported.folder / f"student.{suffix}").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (bad, missing, cut):
        with pytest.raises(StageError, match=rf"{path.name}: cannot be quantized") as raised:
            quantize(format, path, tmp_path / f"q.{suffix}", RECIPE, list(exported.inputs[:, None]))
        assert "\n" not in raised.value.what
    assert {path.name for path in tmp_path.iterdir()} == {bad.name, cut.name}
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: [], "no calibration samples"),
        (lambda x: [*x[:2], x[2][:, :, :-1]], "sample 2 has the shape 1 × 1 × 7 × 8.* 1 × 8 × 8"),
        (lambda x: [x[0], x[1] * np.nan], "sample 1 has values that are not finite"),
        (lambda x: [x[0] / np.float32(0)], "sample 0 has values that are not finite"),
        (lambda x: [{"other": x[0]}], r"sample 0 has the inputs \['other'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_samples_that_calibrate_nothing_are_one_clear_error(exported, tmp_path, by, spoil, message):
    samples = spoil(list(exported.inputs[:, None]))
    with pytest.raises(StageError, match=message):
        quantize(
            "onnx", exported.folder / "student.onnx", tmp_path / "q.onnx",
            Recipe(name="r", backend=by), samples,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
def test_a_layer_that_gives_the_same_whatever_comes_in_is_quantized(exported, tmp_path, by):
    """Its range has no width, and its weights no scale."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(exported.folder / "student.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), weight.name))
    onnx.save(model, tmp_path / "zero.onnx")
    samples = list(exported.inputs[:, None])
    made = Recipe(name="r", backend=by)
    path = quantize("onnx", tmp_path / "zero.onnx", tmp_path / "q.onnx", made, samples)[0]
    expected = logits("onnx", tmp_path / "zero.onnx", exported.inputs)
    answer = logits("onnx", path, exported.inputs)
    assert np.abs(answer - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
def test_an_operator_that_no_runtime_knows_is_one_clear_error(exported, tmp_path, by, capfd):
    import onnx

    model = onnx.load(exported.folder / "student.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Frobnicate", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    recipe = Recipe(name="r", backend=by)
    with pytest.raises(StageError, match=r"odd\.onnx: cannot be quantized.*") as raised:
        quantize(
            "onnx",
            tmp_path / "odd.onnx",
            tmp_path / "q.onnx",
            recipe,
            list(exported.inputs[:, None]),
        )
    assert "Frobnicate" in raised.value.what
    assert not (tmp_path / "q.onnx").exists()


def test_what_a_backend_cannot_do_is_said_with_what_can(exported):
    with pytest.raises(UsageError, match="NNCF has no entropy") as raised:
        usable(source(exported, "onnx"), Recipe(name="r", range="entropy"))
    assert raised.value.fix == "write backend: auto, which takes onnxruntime here"
    only_ir = Source("openvino", exported.folder / "student.xml")
    with pytest.raises(UsageError, match=r"add onnx to export\.formats"):
        usable(only_ir, Recipe(name="r", backend="onnxruntime"))
    assert usable(only_ir, Recipe(name="r", backend="auto")) == ["nncf"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group_size: 48", r"mine\.yaml:2: group_size: 48 is no power of two"),
        ("group_size: 8", r"mine\.yaml:2: group_size: .*16"),
        (
            "exclude: ['conv(']",
            r"mine\.yaml:2: exclude: 'conv\(' is no regular expression: missing",
        ),
    ],
)
def test_what_a_recipe_cannot_say_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/mine.yaml").write_text(f"name: mine\n{text}\n")
    with pytest.raises(UsageError) as told:
        RECIPES.find("mine", tmp_path)
    assert re.search(message, str(told.value))


def test_every_shipped_recipe_serves_both_formats(exported, tmp_path):
    names = [path.stem for path in RECIPES.files(tmp_path)]
    assert "default" in names
    for name in names:
        recipe = RECIPES.find(name, tmp_path)
        for format in FORMATS:
            assert usable(source(exported, format), recipe)


def target(**values):
    return Target.model_validate({"name": "t", "class": "edge", "transport": "ssh", **values})


@pytest.mark.parametrize(
    ("cpus", "reduced", "activations"),
    [
        ([{"arch": "x86_64", "isa": ["avx2"]}], True, "uint8"),
        ([{"arch": "x86_64", "isa": ["avx512f"]}], True, "uint8"),
        ([{"arch": "x86_64", "isa": ["avx512f", "avx512_vnni"]}], False, "uint8"),
        ([{"arch": "x86_64", "isa": ["avx2", "avx_vnni"]}], False, "uint8"),
        ([{"arch": "x86_64", "isa": ["amx_int8"]}], False, "uint8"),
        ([{"arch": "x86_64"}], True, "uint8"),
        ([{"arch": "aarch64", "isa": ["asimddp"]}], False, "int8"),
        ([{"arch": "aarch64"}], False, "int8"),
        ([{"arch": "aarch64"}, {"arch": "x86_64", "isa": ["avx_vnni"]}], False, "uint8"),
        ([{"arch": "aarch64"}, {"arch": "x86_64", "isa": ["avx2"]}], True, "uint8"),
    ],
)
def test_types_suit_the_targets_cpus_rather_than_this_one(cpus, reduced, activations):
    found = arithmetic(RECIPE, [target(**cpu) for cpu in cpus])
    assert (found.reduced_range, found.activations) == (reduced, activations)


def test_types_suit_this_machine_where_it_is_the_target(monkeypatch, tmp_path):
    from edgekd.profile.targets import find
    from edgekd.quantize import arithmetic as module

    def machine(isa, architecture="x86_64"):
        monkeypatch.setattr(module, "describe", lambda: {"architecture": architecture, "isa": isa})
        return arithmetic(RECIPE, [find("local", tmp_path)]).reduced_range

    assert machine(["avx2", "fma"]) is True
    assert machine(["avx512f", "avx512_vnni"]) is False
    assert machine(["asimd"], "aarch64") is False
    assert arithmetic(Recipe(name="r", reduced_range="on")).reduced_range is True


@pytest.mark.parametrize("by", ["nncf", "onnxruntime"])
def test_a_reduced_range_leaves_one_bit_of_the_weights_unused(exported, tmp_path, by):
    import onnx
    from onnx import numpy_helper

    largest = {}
    for reduced in ("on", "off"):
        recipe = Recipe(name="r", backend=by, reduced_range=reduced)
        path = prepared(exported, "onnx", recipe).write(tmp_path / f"{reduced}.onnx")[0]
        graph = onnx.load(path).graph
        weights = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 2]
        largest[reduced] = max(np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8)
    assert largest["on"] in (63, 64)
    assert largest["off"] in (127, 128)
