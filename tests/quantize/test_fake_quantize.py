"""Fake quantization: the student as INT8 files compute it, trained as the papers say, exported exactly."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.config.schema import Export
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.quantize.fake_quantize import (
    ActivationQuantizer,
    Constant,
    WeightQuantizer,
    fake_quantized,
    fold_batch_norm,
    frozen,
)
from edgekd.quantize.qat import with_integer_weights
from edgekd.quantize.recipes import Recipe
from edgekd.results import Arithmetic, InputSpec, ModelCard

FULL = Arithmetic(reduced_range=False, activations="uint8", cpus=())
REDUCED = FULL.model_copy(update={"reduced_range": True})


def network(name, shape=(3, 16, 16), **args):
    """With batch normalisation that does something."""
    module = build(f"zoo:{name}", args, input_shape=shape, classes=10, seed=0, base=Path.cwd())
    random = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.2, generator=random)
            part.running_var.uniform_(0.5, 2, generator=random)
            part.weight.data.uniform_(0.5, 2, generator=random)
    return module.eval()


def images(count=24, shape=(3, 16, 16)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def test_weights_are_rounded_to_their_channels_grid_and_the_gradient_passes():
    weight = torch.tensor([[1.27, -0.014, 0.006], [-25.4, 0.3, 0.5], [0, 0, 0]], requires_grad=True)
    quantized = WeightQuantizer(0, -127, 127)(weight)
    scales = [0.01, 0.2, 1.0]
    expected = torch.tensor(
        [[s * round(v / s) for v in row] for s, row in zip(scales, weight.tolist(), strict=True)]
    )
    assert torch.allclose(quantized, expected, atol=1e-6)
    quantized.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 3))


def test_the_gradient_of_the_step_is_that_of_lsq():
    x = torch.tensor([[-0.3, 0.04, 0.27, 0.74, 3.0]])
    step, low, high = 0.1, 0, 15
    quantizer = ActivationQuantizer(step, 0, low, high).train()
    quantizer(x).sum().backward()
    v = x / step
    # Esser 2020, eq. 3: round(v) − v inside, the bound outside; times s for θ with s = s₀·exp(θ).
    inside = (v > low) & (v < high)
    by_step = torch.where(inside, v.round() - v, v.clamp(low, high)).sum()
    scale = 1 / (x.numel() * high) ** 0.5
    assert quantizer.theta.grad.item() == pytest.approx((by_step * scale * step).item(), rel=1e-4)


def test_training_and_evaluation_compute_the_same():
    x = images()
    quantizer = ActivationQuantizer(0.03, 100, 0, 255)
    assert torch.equal(quantizer.train()(x), quantizer.eval()(x))
    expected = ((x / 0.03).round() + 100).clamp(0, 255).sub(100) * 0.03
    assert torch.allclose(quantizer(x), expected, atol=0.0301)
    assert (torch.isclose(quantizer(x), expected, atol=1e-5)).float().mean() > 0.999


@pytest.mark.parametrize("name", ["resnet8", "dscnn"])
def test_folding_batch_normalisation_changes_nothing(name):
    module, x = network(name), images()
    with torch.inference_mode():
        expected = module(x)
        folded = fold_batch_norm(copy.deepcopy(module), x[:1])
        assert torch.allclose(folded(x), expected, atol=1e-5)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())


class Odd(nn.Module):
    """Batch normalisation that must not be folded: its layer is read twice, or used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.n, self.m = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.n.running_mean.fill_(1.0)
        self.m.running_mean.fill_(2.0)

    def forward(self, x):
        y = self.a(x)
        y = self.n(y) + y
        return self.m(self.b(self.b(y))).mean((2, 3))


def test_batch_normalisation_stays_where_its_layer_serves_others_too():
    module, x = Odd().eval(), images(4)
    folded = fold_batch_norm(copy.deepcopy(module), x[:1])
    assert isinstance(folded.n, nn.BatchNorm2d)
    assert isinstance(folded.m, nn.BatchNorm2d)
    with torch.inference_mode():
        assert torch.equal(folded(x), module(x))


def deployed(model, x, folder):
    card = ModelCard(
        role="student", model="m", args={}, classes=tuple("0123456789"), seed=0, parameters=1,
        input=InputSpec(shape=tuple(x.shape[1:]), scale=1, mean=(0,) * 3, std=(1,) * 3),
    )  # fmt: skip
    source = Source(frozen(model, x[:2]), card, x[:2], folder / "student.onnx")
    path = EXPORTERS.get("onnx")(source, folder, Export(simplify=False)).path
    return with_integer_weights(onnx.load(path))


def outputs(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"input": x.numpy()})[0]


@pytest.mark.parametrize("types", [FULL, REDUCED], ids=["8 bits", "7 bits"])
def test_the_file_computes_what_was_trained_with_weights_in_int8(tmp_path, types):
    module, x = network("dscnn"), images()
    model = fake_quantized(module, Recipe(name="r"), list(x[:, None]), types)
    # As if trained: other weights, other steps.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * parameter.abs().mean() + 0.01)
        expected, original = model.eval()(x).numpy(), module(x).numpy()
    file = deployed(model, x, tmp_path)
    assert np.abs(expected - original).max() > 0
    # A value between two levels may fall either way.
    assert np.abs(outputs(file, x) - expected).max() < 0.02 * np.abs(expected).max()
    weights = {
        t.name: numpy_helper.to_array(t)
        for t in file.graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    }
    convolutions = [n for n in file.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(weights) == len(convolutions)
    most = 63 if types.reduced_range else 127
    assert {int(np.abs(w.astype(int)).max()) for w in weights.values()} == {most}
    assert not any(
        t.data_type == TensorProto.FLOAT and len(t.dims) > 1 for t in file.graph.initializer
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "vit", "mlp"])
def test_other_architectures_are_trained_and_deployed_alike(tmp_path, name):
    module, x = network(name), images()
    model = fake_quantized(module, Recipe(name="r"), list(x[:, None]), FULL)
    model.train()
    model(x).square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert all(torch.isfinite(p.grad).all() for p in trained)
    with torch.no_grad():
        expected, original = model.eval()(x).numpy(), module(x).numpy()
    assert 0 < np.abs(expected - original).max() < 0.2 * np.abs(original).max()
    found = outputs(deployed(model, x, tmp_path), x)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_module_paths_stay_and_the_student_is_left_alone():
    module, x = network("dscnn"), images(8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = fake_quantized(module, Recipe(name="r"), list(x[:, None]), FULL)
    paths = {name for name, _ in module.named_modules()}
    assert paths <= {name for name, _ in model.named_modules()}
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_integer_weights_are_those_of_onnxs_own_quantizer():
    random = np.random.default_rng(0)
    weight = (10 * random.normal(size=(3, 5))).astype(np.float32)
    # Exactly between two levels, and beyond the last one.
    weight[0, :3], weight[1, 0], weight[1, 1] = (0.5, 1.5, -2.5), 1000, -1000
    tensors = {
        "w": weight,
        "s": np.array([1, 0.5, 2], np.float32),
        "z": np.array([0, 3, -7], np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
            helper.make_node("Add", ["x", "d"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 5))],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    stored = with_integer_weights(model)
    assert [n.op_type for n in stored.graph.node] == ["DequantizeLinear", "Add"]
    assert {t.name for t in stored.graph.initializer} == {"q", "s", "z"}
    feed = {"x": np.zeros((3, 5), np.float32)}
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (model, stored)]
    assert np.array_equal(*(session.run(None, feed)[0] for session in sessions))


def test_a_constant_is_the_same_function_traced_and_not():
    x = images(4)
    constant = Constant(torch.tensor(0.02), 128, 0, signed=False)
    quantizer = ActivationQuantizer(0.02, 128, 0, 255).eval()
    assert torch.equal(constant(x), quantizer(x))
