"""ONNX files as teachers: what they know is what ONNX Runtime, asked directly, says."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd import api
from edgekd.errors import UsageError
from tests.teachers.runs import changed, teacher_stage


def teacher_of(model, folder, **args):
    """The teacher of a run whose first stage is done."""
    config = changed(teacher={"model": f"onnx:{model}", "args": args})
    return teacher_stage(config, folder)


def asked(file, x):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def knowledge(teacher, dataset, indices):
    return teacher.knowledge(dataset.tensor(indices), torch.from_numpy(indices), 0).logits.numpy()


@pytest.fixture
def edited(taught, tmp_path):
    """Save a changed copy of the teacher's file."""

    def edit(change):
        model = onnx.load(taught.file)
        change(model)
        path = tmp_path / "edited.onnx"
        onnx.save(model, path)
        return path

    return edit


def drop_metadata(model, *keys):
    kept = [entry for entry in model.metadata_props if entry.key not in keys]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def append(model, node, name):
    node.output[:] = [name]
    model.graph.node.append(node)
    model.graph.output[0].name = name


def two_outputs(model):
    model.graph.output[0].name = "y"
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10]))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_its_answers_are_the_files(taught, digits, tmp_path, runtime):
    teacher, run = teacher_of(taught.file, tmp_path / "run", runtime=runtime)
    some = digits.test[:40]
    assert teacher.transparency == "gray-box"
    expected = asked(taught.file, digits.tensor(some))
    np.testing.assert_allclose(knowledge(teacher, digits, some), expected, atol=1e-4)
    right = (taught.logits[digits.test].argmax(1) == digits.labels[digits.test]).sum()
    assert run.training("teacher").test.correct == right
    assert run.card("teacher").parameters == 64 * 64 + 64 + 64 * 10 + 10


@pytest.mark.slow
def test_the_whole_line_runs_beside_the_teachers_file(taught, tmp_path):
    run = api.compress(
        changed(
            teacher={"model": f"onnx:{taught.file}"},
            export={"formats": ["onnx", "openvino"]},
            quantize={"recipe": "default"},
            gate={"budgets": [{"metric": "speedup", "min": "0.01 x"},
                              {"metric": "accuracy_drop", "max": "50 points"}]},
        ),
        out=tmp_path / "run",
    )  # fmt: skip
    places = {(m.role, m.variant, m.runtime) for m in run.profile.measurements}
    assert {("teacher", "f32", "onnxruntime"), ("teacher", "f32", "openvino")} < places
    assert {c.variant for c in run.profile.comparisons} == {"f32", "int8"}
    assert all(p.passed for p in run.verify.files)
    assert run.exit_code == 0
    assert f"onnx:{taught.file}" in (run.path / "report.html").read_text()
    assert "what it was trained on is not known" in (run.path / "MODEL_CARD.md").read_text()


def test_probabilities_become_their_logarithms_and_teach_the_same(taught, digits, edited, tmp_path):
    softmax = edited(
        lambda m: append(m, helper.make_node("Softmax", ["logits"], ["p"], axis=1), "p")
    )
    teacher, _ = teacher_of(softmax, tmp_path / "run")
    some = digits.test[:40]
    theirs = torch.from_numpy(knowledge(teacher, digits, some))
    logits = torch.from_numpy(asked(taught.file, digits.tensor(some)))
    for temperature in (1, 4):
        torch.testing.assert_close(
            (theirs / temperature).softmax(1), (logits / temperature).softmax(1),
            atol=2e-2 if temperature == 4 else 1e-6, rtol=0,
        )  # fmt: skip


def test_probabilities_that_no_softmax_made_are_asked_about(edited, tmp_path):
    # p = exp(logits) / Σ exp(logits), as some exporters write it.
    def change(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
        model.graph.node.append(helper.make_node("Exp", ["logits"], ["e"]))
        model.graph.node.append(helper.make_node("ReduceSum", ["e", "axis"], ["s"], keepdims=1))
        append(model, helper.make_node("Div", ["e", "s"], ["p"]), "p")

    path = edited(change)
    with pytest.raises(UsageError, match=r"sum to 1.*\n.*gives: probabilities"):
        teacher_of(path, tmp_path / "a")
    teacher_of(path, tmp_path / "b", gives="probabilities")


def test_logits_that_are_called_probabilities_are_refused(taught, tmp_path):
    with pytest.raises(
        UsageError, match=r"(?s)8 of 8 answers of its output 'logits'.*gives: logits"
    ):
        teacher_of(taught.file, tmp_path / "run", gives="probabilities")


def test_another_order_of_classes_is_told_by_their_names(taught, digits, edited, tmp_path):
    order = np.random.default_rng(0).permutation(10)

    def change(model):
        model.graph.initializer.append(numpy_helper.from_array(order, "order"))
        append(model, helper.make_node("Gather", ["logits", "order"], ["x"], axis=1), "x")
        drop_metadata(model, "edgekd.classes")
        names = {i: str(c) for i, c in enumerate(order.tolist())}
        helper.set_model_props(model, {"names": repr(names)})

    teacher, run = teacher_of(edited(change), tmp_path / "run")
    some = digits.test[:40]
    expected = asked(taught.file, digits.tensor(some))
    np.testing.assert_allclose(knowledge(teacher, digits, some), expected, atol=1e-5)
    assert run.training("teacher").test.value > 0.8


def test_other_classes_are_refused_by_name(edited, tmp_path):
    names = [*map(str, range(9)), "cat"]
    path = edited(lambda m: helper.set_model_props(m, {"edgekd.classes": json.dumps(names)}))
    with pytest.raises(UsageError, match="the data's classes are '9'; the teacher knows 'cat'"):
        teacher_of(path, tmp_path / "run")


def test_another_normalisation_is_refused_with_the_right_one(edited, tmp_path):
    said = json.dumps({"shape": [1, 8, 8], "scale": 16, "mean": [0.25], "std": [0.125]})
    path = edited(lambda m: helper.set_model_props(m, {"edgekd.input": said}))
    with pytest.raises(UsageError, match=r"set data: {mean: \[0.25\], std: \[0.125\]}"):
        teacher_of(path, tmp_path / "run")


def test_a_fixed_batch_becomes_a_free_one(digits, edited, tmp_path):
    def fix(model):
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    path = edited(fix)
    teacher, _ = teacher_of(path, tmp_path / "run")
    some = digits.test[:5]
    one_by_one = np.concatenate([asked(path, digits.tensor(some[i : i + 1])) for i in range(5)])
    np.testing.assert_allclose(knowledge(teacher, digits, some), one_by_one, atol=1e-5)


def test_a_batch_that_cannot_be_freed_is_an_error_of_one_line(edited, tmp_path):
    def fix(model):
        shape = numpy_helper.from_array(np.array([1, 10]), "shape")
        model.graph.initializer.append(shape)
        append(model, helper.make_node("Reshape", ["logits", "shape"], ["x"]), "x")

    with pytest.raises(UsageError, match="with any n"):
        teacher_of(edited(fix), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE),
         "double; should take float32"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 32),
         r"\(n, 1, 32, 8\); the data's are \(n, 1, 8, 8\)"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7),
         r"logits of shape \(n, 7\), but the data has 10 classes"),
        (two_outputs, "has the outputs y, x"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_teach_this_data_says_why(edited, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        teacher_of(edited(change), tmp_path / "run")


def test_a_file_that_is_no_model_is_an_error_of_one_line(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"\x00junk" * 100)
    with pytest.raises(UsageError, match=r"junk\.onnx.*is not an ONNX model"):
        teacher_of(tmp_path / "junk.onnx", tmp_path / "run")
    with pytest.raises(UsageError, match="no such file"):
        teacher_of(tmp_path / "none.onnx", tmp_path / "run")


def test_what_is_not_finite_is_never_learned_from(edited, tmp_path):
    path = edited(lambda m: append(m, helper.make_node("Log", ["logits"], ["x"]), "x"))
    with pytest.raises(Exception, match="not finite"):
        teacher_of(path, tmp_path / "run")


def test_a_changed_file_is_another_teacher(taught, edited, tmp_path):
    path = edited(lambda m: None)
    _, run = teacher_of(path, tmp_path / "run")
    before = run.manifest.stages["teacher"].key
    weights = onnx.load(path)
    weights.graph.initializer[0].raw_data = bytes(len(weights.graph.initializer[0].raw_data))
    onnx.save(weights, path)
    _, run = teacher_of(path, tmp_path / "run")
    assert run.manifest.stages["teacher"].key != before
