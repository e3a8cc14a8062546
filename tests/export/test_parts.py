"""Model files that a user gives: corrupt ones, and weights that are missing or somewhere else."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import UsageError
from edgekd.export.parts import model_parts


def model(folder, location="model.onnx.data", branch=False):
    """y = x + w with w (300,) in a file of its own, if asked for inside of an If."""
    weight = numpy_helper.from_array(np.arange(300, dtype=np.float32), "w")
    value = helper.make_tensor_value_info
    add = helper.make_node("Add", ["x", "w"], ["y"])
    inputs = [value("x", TensorProto.FLOAT, [300])]
    if branch:
        inner = helper.make_graph(
            [add], "then", [], [value("y", TensorProto.FLOAT, [300])], [weight]
        )
        inputs.append(value("c", TensorProto.BOOL, []))
        add = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [add], "g", inputs, [value("y", TensorProto.FLOAT, [300])], [] if branch else [weight]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    tensors = (
        [a.g.initializer[0] for a in made.graph.node[0].attribute]
        if branch
        else made.graph.initializer
    )
    for tensor in tensors:
        onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=1200)
        tensor.ClearField("raw_data")
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("branch", [False, True])
def test_a_model_with_its_weights_beside_it_has_two_parts(tmp_path, branch):
    path = model(tmp_path, branch=branch)
    (tmp_path / "model.onnx.data").write_bytes(bytes(1200))
    assert model_parts(path) == [path, tmp_path / "model.onnx.data"]


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "link"])
def test_weights_outside_the_folder_are_refused(tmp_path, location, branch):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="outside its folder"):
        model_parts(model(tmp_path, location, branch))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"weights are missing: .*model\.onnx\.data"):
        model_parts(model(tmp_path))


def test_weights_that_were_cut_off_are_refused(tmp_path):
    path = model(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(bytes(1199))
    with pytest.raises(UsageError, match=r"model\.onnx\.data ends before the weights 'w' do"):
        model_parts(path)


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"not a model at all", b"\xff" * 100])
def test_what_is_no_onnx_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not an ONNX model"):
        model_parts(path)


def test_a_model_that_was_cut_off_is_refused(tmp_path):
    path = model(tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match="is not an ONNX model"):
        model_parts(path)


def test_an_ir_without_its_weights_is_refused(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("<net/>")
    with pytest.raises(UsageError, match=r"weights are missing: .*model\.bin"):
        model_parts(path)
