"""Exported files: dynamic batch, what is inside, and networks that cannot be exported."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.profile.device.runtimes import load
from edgekd.results import InputSpec, ModelCard


def source(module, folder, shape=(1, 8, 8)):
    card = ModelCard(
        role="student", model="zoo:test", args={}, classes=("no", "ja", "später"), parameters=0,
        input=InputSpec(shape=shape, scale=255, mean=(0.5,), std=(0.25,)), seed=0,
    )  # fmt: skip
    return Source(module.eval(), card, torch.randn(2, *shape), folder / "student.onnx")


def network(name, shape=(1, 8, 8), **args):
    return build(f"zoo:{name}", args, input_shape=shape, classes=3, seed=0, base=None)


def both(module, folder, shape=(1, 8, 8), config=None):
    """The ONNX and the OpenVINO session of a module."""
    given = source(module, folder, shape)
    files = [EXPORTERS.get(f)(given, folder, config or Export()).path for f in ("onnx", "openvino")]
    runtimes = ("onnxruntime", "openvino")
    return [load(r, f, threads=1, precision="f32") for r, f in zip(runtimes, files, strict=True)]


@pytest.mark.parametrize(
    "name", ["mlp", "resnet8", "wrn16-1", "mobilenetv2", "shufflenetv1", "shufflenetv2", "vit"]
)
def test_every_family_computes_the_same_for_batches_it_was_not_exported_with(tmp_path, name):
    module = network(name, (3, 16, 16))
    inputs = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        # Batch norm's statistics of an untrained network are trivial: make them matter.
        module.train()(inputs)
        expected = module.eval()(inputs).numpy()
    for session in both(module, tmp_path, (3, 16, 16)):
        for batch in (1, 7):
            (logits,) = session.run(inputs[:batch].numpy())
            assert np.abs(logits - expected[:batch]).max() < 1e-4 * max(1, np.abs(expected).max())


def test_global_average_pooling_is_one_operator_whatever_the_strides_of_the_example(tmp_path):
    wanted = source(network("dscnn"), tmp_path)
    # One channel is both contiguous and channels-last: PyTorch then adds a no-op as_strided.
    example = wanted.example.as_strided((2, 1, 8, 8), (64, 1, 8, 1))
    made = EXPORTERS.get("onnx")(dataclasses.replace(wanted, example=example), tmp_path, Export())
    types = [node.op_type for node in onnx.load(made.path).graph.node]
    assert types.count("ReduceMean") == 1
    assert set(types) == {"Conv", "Relu", "ReduceMean", "Reshape", "Gemm"}


def test_the_file_says_what_a_deployer_needs(tmp_path):
    EXPORTERS.get("onnx")(source(network("mlp"), tmp_path), tmp_path, Export())
    model = onnx.load(tmp_path / "student.onnx")
    onnx.checker.check_model(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["edgekd.classes"]) == ["no", "ja", "später"]
    assert json.loads(about["edgekd.input"])["scale"] == 255
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 1, 8, 8,
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.onnx"]


def test_the_same_model_is_the_same_file(tmp_path):
    made = []
    for name in ("once", "again"):
        folder = tmp_path / name
        folder.mkdir()
        both(network("dscnn"), folder)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0].keys() == {"student.onnx", "student.xml", "student.bin"}
    assert made[0] == made[1]


@pytest.mark.parametrize("opset", [18, 20])
def test_the_opset_is_the_one_asked_for(tmp_path, opset):
    made = EXPORTERS.get("onnx")(source(network("mlp"), tmp_path), tmp_path, Export(opset=opset))
    assert made.opset == opset
    model = onnx.load(tmp_path / "student.onnx")
    assert {o.version for o in model.opset_import if o.domain == ""} == {opset}


def test_a_network_that_cannot_be_exported_says_why_and_keeps_the_log(tmp_path, capfd):
    class Branches(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return x[:, :3] if x.sum() > 0 else x[:, 3:6]

    with pytest.raises(StageError, match=r"student cannot be exported to ONNX: \w+") as caught:
        EXPORTERS.get("onnx")(source(Branches(), tmp_path), tmp_path, Export())
    assert "student.onnx.log" in str(caught.value)
    assert "Traceback" in (tmp_path / "student.onnx.log").read_text()
    assert not (tmp_path / "student.onnx").exists()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_what_openvino_refuses_is_one_line(tmp_path):
    (tmp_path / "student.onnx").write_bytes(b"not a model")
    given = SimpleNamespace(
        onnx=tmp_path / "student.onnx", card=SimpleNamespace(role="student", model="zoo:x")
    )
    with pytest.raises(StageError, match="OpenVINO cannot convert the student"):
        EXPORTERS.get("openvino")(given, tmp_path, Export())
