"""Files that cannot be opened or fed are one clear error."""

import shutil

import numpy as np
import onnx
import pytest

from edgekd.errors import StageError
from edgekd.verify.sessions import open_session, outputs, runtimes_for


@pytest.fixture
def student(exported, tmp_path):
    for path in exported.folder.glob("student*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "student.onnx"


def external(path):
    """The same file with its weights in another one."""
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=100
    )


def test_an_onnx_file_opens_in_both_runtimes_and_ir_in_its_own():
    assert runtimes_for("onnx") == ["onnxruntime"]
    assert runtimes_for("onnx", all=True) == ["onnxruntime", "openvino"]
    assert runtimes_for("openvino", all=True) == ["openvino"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model_is_named(student, runtime):
    student.write_bytes(b"\x08\x07not a model" * 20)
    with pytest.raises(StageError, match=r"student\.onnx.*ONNX model") as caught:
        open_session(runtime, student)
    assert len(caught.value.what.splitlines()) == 1
    assert "export --force" in str(caught.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_truncated_file_is_named(student, runtime):
    student.write_bytes(student.read_bytes()[:-200])
    with pytest.raises(StageError, match=r"student\.onnx"):
        open_session(runtime, student)


def test_weights_that_are_missing_or_outside_the_folder_are_refused(student):
    external(student)
    open_session("onnxruntime", student)
    (student.parent / "w.data").unlink()
    with pytest.raises(StageError, match=r"weights are missing.*w\.data"):
        open_session("onnxruntime", student)
    model = onnx.load(student, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    student.write_bytes(model.SerializeToString())
    with pytest.raises(StageError, match="outside its folder"):
        open_session("openvino", student)


def test_ir_without_its_weights_and_with_some_of_them_is_named(student):
    ir, weights = student.with_suffix(".xml"), student.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StageError, match=r"student\.xml"):
        open_session("openvino", ir)
    weights.unlink()
    with pytest.raises(StageError, match=r"weights are missing.*student\.bin"):
        open_session("openvino", ir)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_inputs_of_another_shape_are_one_line_with_both(student, runtime):
    session = open_session(runtime, student)
    with pytest.raises(
        StageError, match=r"here: fails for inputs of shape \(2, 1, 9, 8\)"
    ) as caught:
        outputs(session, np.zeros((2, 1, 9, 8), np.float32), 2, where="here")
    assert len(str(caught.value).splitlines()) == 1


def test_samples_are_fed_in_batches_and_come_back_in_order(student, exported):
    session = open_session("onnxruntime", student)
    whole = outputs(session, exported.inputs, 100, where="x")
    assert whole.shape == (32, 10)
    assert np.allclose(outputs(session, exported.inputs, 7, where="x"), whole, atol=1e-5)


def test_what_openvino_does_not_convert_is_told_with_its_operator_and_cause(tmp_path):
    node = onnx.helper.make_node("Foo", ["x"], ["y"], domain="com.microsoft")
    rank = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = onnx.numpy_helper.from_array(np.ones((5, 2), np.float32), "w")
    for name, operator in (("unknown", node), ("shape", rank)):
        values = [
            onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, ["n", 3]) for v in "xy"
        ]
        graph = onnx.helper.make_graph([operator], "g", values[:1], values[1:], [weights])
        sets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=sets), tmp_path / f"{name}.onnx")
    with pytest.raises(
        StageError, match=r"no conversion of operator com\.microsoft\.Foo"
    ) as unknown:
        open_session("openvino", tmp_path / "unknown.onnx")
    with pytest.raises(StageError, match=r"operator MatMul\S*: Incompatible MatMul") as shape:
        open_session("openvino", tmp_path / "shape.onnx")
    for caught in (unknown, shape):
        assert len(caught.value.what.splitlines()) == 1
        assert "is not what edgekd wrote" not in str(caught.value)
