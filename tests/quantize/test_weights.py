"""Weight-only and dynamic quantization of a small transformer: smaller files that answer alike."""

import numpy as np
import onnx
import pytest
import torch

from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.profile.device.runtimes import RUNTIMES, load
from edgekd.quantize.recipes import Recipe
from edgekd.quantize.weights import compressed
from edgekd.results import InputSpec, ModelCard

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    module = build("zoo:vit", {}, input_shape=(3, 16, 16), classes=10, seed=0, base=folder).eval()
    card = ModelCard(
        role="student", model="zoo:vit", args={}, classes=tuple("0123456789"), seed=0, parameters=1,
        input=InputSpec(shape=(3, 16, 16), scale=1, mean=(0,) * 3, std=(1,) * 3),
    )  # fmt: skip
    inputs = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    source = Source(module, card, inputs[:2], folder / "student.onnx")
    path = EXPORTERS.get("onnx")(source, folder, Export()).path
    with torch.inference_mode():
        return path, inputs.numpy(), module(inputs).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize(
    ("mode", "smaller", "error"),
    [("weights-int8", 0.45, 0.03), ("weights-int4", 0.4, 0.4), ("dynamic", 0.45, 0.1)],
)
def test_files_are_smaller_and_answer_alike(vit, tmp_path, format, mode, smaller, error):
    source, inputs, expected = vit
    recipe = Recipe(name="r", mode=mode, group_size=32)
    path = tmp_path / f"student-int8{SUFFIXES[format]}"
    files = compressed(source, format, path, recipe)
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert files[-1].stat().st_size < smaller * source.stat().st_size
    for runtime in (name for name in RUNTIMES if format in RUNTIMES[name].formats):
        found = load(runtime, path, threads=1, precision="f32").run(inputs)[0]
        assert 0 < np.abs(found - expected).max() < error * np.abs(expected).max()


def test_a_model_without_such_layers_is_refused_and_nothing_is_written(tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("n", 4)) for name in "xy"
    ]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "r.onnx")
    for mode in ("dynamic", "weights-int8"):
        with pytest.raises(StageError, match=f"has no layer that {mode} quantizes|cannot be quant"):
            compressed(tmp_path / "r.onnx", "onnx", tmp_path / "q.onnx", Recipe(name="r", mode=mode))
    assert [p.name for p in tmp_path.iterdir()] == ["r.onnx"]
