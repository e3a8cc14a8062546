"""A file that is broken in one layer names that layer, in ONNX, IR and INT8."""

import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgekd.config.schema import Export, Verify
from edgekd.errors import StageError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.results import ExportedFile, InputSpec, ModelCard
from edgekd.verify.edges import Verifier, torch_outputs
from edgekd.verify.inputs import cases
from edgekd.verify.layers import compare_layers, module_outputs, places, unsteady

BROKEN = "layer2.0.conv2.weight"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """ResNet-8 with all kinds of values in its batch norms, as ONNX and as IR made from it."""
    root = tmp_path_factory.mktemp("layers")
    module = build("zoo:resnet8", {}, input_shape=(1, 8, 8), classes=10, seed=0, base=root)
    inputs = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            module(inputs)
    module.eval()
    card = ModelCard(
        role="student", model="zoo:resnet8", args={}, classes=tuple("0123456789"), seed=0,
        input=InputSpec(shape=(1, 8, 8), scale=1, mean=(0,), std=(1,)), parameters=1,
    )  # fmt: skip
    source = Source(module, card, inputs[:2], root / "student.onnx")
    for format in ("onnx", "openvino"):
        EXPORTERS.get(format)(source, root, Export(producer="onnx"))
    return SimpleNamespace(root=root, module=module, inputs=inputs.numpy())


def file(format, path, variant="f32"):
    return ExportedFile(role="student", format=format, variant=variant, path=path, files=(), size=1,
                        seconds=0)  # fmt: skip


def compared(resnet, one, root=None, failed=None, **settings):
    return compare_layers(
        one, root or resnet.root, resnet.module, resnet.inputs[:8], resnet.root / "student.onnx",
        Verify(**settings), failed,
    )  # fmt: skip


def broken_copy(resnet, folder, noise=0.1):
    """The ONNX file with `noise`, as a share of their size, on the weights of one convolution."""
    model = onnx.load(resnet.root / "student.onnx")
    weight = next(w for w in model.graph.initializer if w.name == BROKEN)
    values = numpy_helper.to_array(weight)
    added = np.random.default_rng(0).normal(size=values.shape) * noise * values.std()
    changed = numpy_helper.from_array((values + added).astype(np.float32), BROKEN)
    weight.CopyFrom(changed)
    onnx.save(model, folder / "student.onnx")
    return folder / "student.onnx"


@pytest.mark.parametrize(
    ("format", "path"), [("onnx", "student.onnx"), ("openvino", "student.xml")]
)
def test_a_good_file_has_every_layer_of_the_network_and_none_that_differs(resnet, format, path):
    found = compared(resnet, file(format, path))
    assert found.first is None
    assert found.note == ""
    names = [layer.module for layer in found.layers]
    # Convolutions bear the names of the batch norms folded into them; blocks those of their sum.
    assert names[0] == "bn1"
    assert names[-1] == "fc"
    assert {"layer1.0.bn1", "layer2.0.bn2", "layer2.0", "layer3.0"} <= set(names)
    assert max(layer.max_error for layer in found.layers) < 1e-5
    assert found.layers[0].weights == "conv1.weight"
    assert found.layers[0].label == "bn1 (weights of conv1)"


def test_the_layer_with_broken_weights_is_named_in_onnx_and_in_ir(resnet, tmp_path):
    import openvino

    path = broken_copy(resnet, tmp_path)
    openvino.save_model(
        openvino.convert_model(path), tmp_path / "student.xml", compress_to_fp16=False
    )
    for one in (file("onnx", "student.onnx"), file("openvino", "student.xml")):
        found = compared(resnet, one, tmp_path)
        assert found.first is not None
        first = found.layers[found.first]
        assert (first.module, first.weights) == ("layer2.0.bn2", BROKEN)
        assert all(layer.max_error < 1e-5 for layer in found.layers[: found.first])
        # A looser tolerance that the first layers keep does not name them.
        assert compared(resnet, one, tmp_path, tolerance=10.0).first is None


@pytest.mark.slow
def test_int8_files_are_compared_layer_by_layer_and_the_broken_one_is_named(resnet, tmp_path):
    pytest.importorskip("nncf")
    from edgekd.quantize.backend import quantize
    from edgekd.quantize.recipes import Recipe

    recipe = Recipe(name="x", samples=32, reduced_range="off")
    samples = list(resnet.inputs[:, None])
    worst = 0.0
    for format, suffix in (("onnx", "onnx"), ("openvino", "xml")):
        source = resnet.root / f"student.{suffix}"
        quantize(format, source, tmp_path / f"good.{suffix}", recipe, samples)
        found = compared(resnet, file(format, f"good.{suffix}", "int8"), tmp_path)
        assert found.first is None
        # OpenVINO fuses some tensors with their quantization.
        assert {"bn1", "layer1.0.bn1", "layer2.0.bn2", "fc"} <= {x.module for x in found.layers}
        worst = max(worst, *(layer.max_error for layer in found.layers))
    assert 1e-3 < worst < 0.25
    broken = broken_copy(resnet, tmp_path, noise=1.0)
    quantize("onnx", broken, tmp_path / "bad.onnx", recipe, samples)
    bad = compared(resnet, file("onnx", "bad.onnx", "int8"), tmp_path)
    assert bad.first is not None
    assert bad.layers[bad.first].module == "layer2.0.bn2"


def test_places_are_outputs_of_modules_as_pytorch_computes_them(resnet):
    expected = module_outputs(resnet.module, resnet.inputs[:2])
    session = onnx.reference.ReferenceEvaluator(str(resnet.root / "student.onnx"))
    found = [place for place in places(resnet.root / "student.onnx") if place.module in expected]
    values = session.run(None, {"input": resnet.inputs[:2]}, intermediate=True)
    assert len(found) > 10
    for place in found:
        assert np.allclose(values[place.tensor], expected[place.module], atol=1e-4), place


def test_modules_that_run_twice_or_work_in_place_are_not_mistaken():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(self.fc(self.act(self.fc(x))))

    torch.manual_seed(0)
    module = Twice().eval()
    assert set(module_outputs(module, np.ones((2, 4), np.float32))) == {""}
    chain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True))
    assert module_outputs(chain, np.ones((2, 4), np.float32))["0"].min() < 0


def verifier(resnet):
    files = (file("onnx", "student.onnx"),)
    return Verifier(
        resnet.root, Verify(batches=[16]), files,
        lambda role, x: torch_outputs(resnet.module, x),
        [case for case in cases(resnet.inputs, [16]) if case.real],
    )  # fmt: skip


def test_where_a_file_fails_its_layers_are_compared_on_what_it_fails_on(resnet):
    """In large batches a block gives something else, which no look at eight samples finds."""
    one = file("onnx", "student.onnx")
    assert verifier(resnet).hardest(one) is None
    hook = resnet.module.layer2[0].register_forward_hook(
        lambda module, inputs, output: output + 1 if len(output) > 8 else output
    )
    try:
        assert compared(resnet, one).first is None
        hardest = verifier(resnet).hardest(one)
        assert hardest.case.inputs == "batch 16"
        assert hardest.x.shape == (16, 1, 8, 8)
        found = compared(resnet, one, failed=hardest)
        assert (found.inputs, found.samples) == ("batch 16", 16)
        assert found.error == hardest.case.max_error
        assert found.broken == found.layers[found.first]
        assert found.broken.module == "layer2.0"
        assert found.model_copy(update={"variant": "int8"}).broken is None
    finally:
        hook.remove()


def test_the_batch_that_differs_most_is_looked_at(resnet):
    odd = resnet.inputs[20]

    def answers(role, x):
        found = torch_outputs(resnet.module, x)
        return found + np.float32(10) * (x == odd).all(axis=(1, 2, 3))[:, None]

    other = verifier(resnet)
    other.module = answers
    hardest = other.hardest(file("onnx", "student.onnx"))
    assert (hardest.x == odd).all(axis=(1, 2, 3)).any()
    assert len(hardest.x) == 16


def test_a_network_that_is_random_or_mixes_samples_is_told_to_be(resnet):
    class Noise(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) + torch.rand(len(x), 1)

    class Mean(torch.nn.Module):
        def forward(self, x):
            return (x - x.mean(0)).mean((2, 3)) + 1

    few = resnet.inputs[:4]
    assert unsteady(resnet.module, few, 1e-4) == ""
    assert "random in eval mode" in unsteady(Noise(), few, 1e-4)
    assert "mixes the samples" in unsteady(Mean(), few, 1e-4)


def test_a_file_without_the_onnx_files_names_says_so(resnet, tmp_path):
    EXPORTERS.get("openvino")(
        Source(resnet.module, ModelCard(
            role="student", model="zoo:resnet8", args={}, classes=tuple("0123456789"), seed=0,
            input=InputSpec(shape=(1, 8, 8), scale=1, mean=(0,), std=(1,)), parameters=1,
        ), torch.from_numpy(resnet.inputs[:2]), resnet.root / "student.onnx"),
        tmp_path, Export(producer="pytorch"),
    )  # fmt: skip
    found = compared(resnet, file("openvino", "student.xml"), tmp_path)
    if not found.layers:
        assert "export.producer" in found.note
    assert found.first is None


def test_a_file_that_cannot_be_read_is_one_clear_error(resnet, tmp_path):
    (tmp_path / "student.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(StageError, match=r"student\.onnx"):
        compared(resnet, file("onnx", "student.onnx"), tmp_path)
    with pytest.raises(StageError, match="not an ONNX model"):
        places(tmp_path / "student.onnx")
    shutil.copy(resnet.root / "student.xml", tmp_path)
    with pytest.raises(StageError, match=r"weights are missing.*student\.bin"):
        compared(resnet, file("openvino", "student.xml"), tmp_path)
