"""Runtime adapters: the same logits as PyTorch, pinned precision, clear refusals."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgekd.profile.device.runtimes import RUNTIMES, load
from edgekd.profile.device.runtimes.onnxruntime import ONE_NODE

FILES = {"onnxruntime": "student.onnx", "openvino": "student.xml"}


def test_the_runtimes_are_these():
    assert {name: r.formats for name, r in RUNTIMES.items()} == {
        "onnxruntime": ("onnx",), "openvino": ("openvino",),
    }  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_logits_equal_pytorchs_for_any_batch_and_precision_is_read_back(exported, name):
    session = load(name, exported.folder / FILES[name], threads=1, precision="f32")
    for batch in (1, 3, 32):
        (logits,) = session.run(exported.inputs[:batch])
        with torch.inference_mode():
            expected = exported.modules["student"](
                torch.from_numpy(exported.inputs[:batch])
            ).numpy()
        assert np.abs(logits - expected).max() < 1e-5
    assert session.precision == "f32"
    assert session.version()[0].isdigit()


@pytest.mark.parametrize("name", FILES)
def test_bound_inputs_can_be_inferred_again_and_again(exported, name):
    session = load(name, exported.folder / FILES[name], threads=1, precision="f32")
    for batch in (1, 8):
        session.set_inputs(exported.inputs[:batch].copy())
        for _ in range(3):
            session.infer()
    (logits,) = session.run(exported.inputs[:2])
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_model_raises(tmp_path, name):
    path = tmp_path / FILES[name]
    path.write_text("not a model")
    with pytest.raises(Exception, match=r".+"):
        load(name, path, threads=1, precision="f32")


def test_onnxruntime_cannot_be_told_another_precision_than_the_files(exported):
    with pytest.raises(ValueError, match="executes this file in f32, not in bf16"):
        load("onnxruntime", exported.folder / "student.onnx", threads=1, precision="bf16")


def test_openvino_executes_the_precision_or_says_so(exported):
    try:
        session = load("openvino", exported.folder / "student.xml", threads=1, precision="bf16")
    except ValueError as error:
        assert "not in bf16" in str(error)
    else:
        assert session.precision == "bf16"


@pytest.mark.parametrize("name", FILES)
def test_the_runtime_warms_up_with_a_model_of_one_node(name):
    RUNTIMES[name].session.warm()


def test_the_embedded_model_is_one_identity_node():
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = onnx.load_from_string(ONE_NODE)
    onnx.checker.check_model(model)
    assert model == expected
