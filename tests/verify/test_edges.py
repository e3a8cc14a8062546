"""Every step from PyTorch to a file, on real small files."""

import numpy as np
import onnx
import pytest
import torch

from edgekd.config.schema import Verify
from edgekd.errors import StageError
from edgekd.results import Edge, ExportedFile, InputCase, VerifyReport
from edgekd.verify.edges import RETRAINED, Verifier, judge, source_of, torch_outputs
from edgekd.verify.failures import check, failures
from edgekd.verify.inputs import Case, cases

SETTINGS = Verify(batches=[1, 3, 7, 16])


@pytest.fixture
def verifier(exported):
    return verifier_of(exported, exported.files)


def verifier_of(exported, files, module=None):
    module = module or (lambda role, x: torch_outputs(exported.modules[role], x))
    return Verifier(
        exported.root, SETTINGS, files, module, cases(exported.inputs, SETTINGS.batches)
    )


def of(exported, format, role="student"):
    return next(f for f in exported.files if (f.role, f.format) == (role, format))


def steps(edges):
    return [(e.source, e.path, e.runtime, e.precision) for e in edges]


def test_a_file_is_compared_with_pytorch_and_its_source_in_all_that_opens_it(exported, verifier):
    onnx_edges = verifier.edges(of(exported, "onnx"))
    assert steps(onnx_edges) == [
        ("PyTorch", "export/student.onnx", "onnxruntime", "f32"),
        ("PyTorch", "export/student.onnx", "openvino", "f32"),
    ]
    ir_edges = verifier.edges(of(exported, "openvino"))
    assert steps(ir_edges) == [
        ("PyTorch", "export/student.xml", "openvino", "f32"),
        ("export/student.onnx", "export/student.xml", "openvino", "f32"),
    ]
    for edge in onnx_edges + ir_edges:
        assert edge.passed
        assert [case.inputs for case in edge.cases] == [case.name for case in verifier.cases]
        assert all(case.tolerance and case.max_error < 1e-5 for case in edge.cases)
        low, high = edge.cases[0].agreement_interval
        assert 0.85 < low < high == 1
    assert failures(report(onnx_edges + ir_edges), exported.files) == []


def test_errors_are_those_of_a_loop_over_single_samples(exported, verifier):
    edge = verifier.edges(of(exported, "onnx"))[0]
    session = onnx.reference.ReferenceEvaluator(str(exported.folder / "student.onnx"))
    assert edge.cases[0].max_abs_error < 1e-5
    with torch.inference_mode():
        for x in exported.inputs[:4]:
            expected = exported.modules["student"](torch.from_numpy(x[None])).numpy()
            assert np.allclose(session.run(None, {"input": x[None]})[0], expected, atol=1e-5)


def report(edges, files=()):
    return VerifyReport(reference={}, files=tuple(files), edges=tuple(edges))


def test_another_function_fails_and_the_file_is_named(exported, tmp_path):
    swapped = {"teacher": "student", "student": "teacher"}
    other = verifier_of(
        exported, exported.files, lambda role, x: torch_outputs(exported.modules[swapped[role]], x)
    )
    edges = other.edges(of(exported, "onnx"))
    assert not any(edge.passed for edge in edges)
    with pytest.raises(
        StageError, match=r"student\.onnx in onnxruntime, f32, batch 16: its logits"
    ) as e:
        check(report(edges), exported.files, tmp_path / "log.json")
    assert "verify.tolerance" in str(e.value)
    assert "--layers" in str(e.value)


def test_a_file_that_another_runtime_does_not_open_is_a_note_and_in_its_own_an_error(
    exported, tmp_path
):
    """ONNX Runtime's own operators, as in INT4 files, are nothing that OpenVINO knows."""
    model = onnx.load(exported.folder / "student.onnx")
    logits = model.graph.output[0].name
    last = next(node for node in model.graph.node if logits in node.output)
    last.output[:] = ["before"]
    # It copies.
    own = onnx.helper.make_node("SampleOp", ["before"], [logits], domain="com.microsoft")
    model.graph.node.append(own)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "own.onnx")
    file = of(exported, "onnx").model_copy(update={"path": str(tmp_path / "own.onnx")})
    verifier = verifier_of(exported, (file,))
    edges = verifier.edges(file)
    assert [(edge.runtime, edge.passed) for edge in edges] == [("onnxruntime", True)]
    (note,) = verifier.notes
    assert note.startswith(f"openvino does not open {file.path}: ")
    assert "com.microsoft.SampleOp" in note
    ir = of(exported, "openvino").model_copy(update={"path": str(tmp_path / "own.onnx")})
    with pytest.raises(StageError, match=r"SampleOp"):
        verifier_of(exported, (ir,)).edges(ir)


def failing(path, error, tolerance, variant="f32", runtime="onnxruntime", source="PyTorch"):
    case = InputCase(
        inputs="batch 16",
        samples=16,
        max_error=error,
        tolerance=tolerance,
        passed=error <= tolerance,
    )
    return Edge(
        role="student", variant=variant, path=path, runtime=runtime, precision="f32", source=source,
        cases=(case,),
    )  # fmt: skip


def test_what_fails_first_on_the_way_from_pytorch_is_named_and_the_rest_told(exported, tmp_path):
    """Not what differs most: INT8 may, and is made from what is wrong already."""
    whole, ir = of(exported, "onnx"), of(exported, "openvino")
    ir = ir.model_copy(update={"producer": "openvino from ONNX"})
    int8 = whole.model_copy(update={"variant": "int8", "path": "quantized/student-int8.onnx"})
    found = report(
        [
            failing(int8.path, 0.52, 0.25, "int8"),
            failing(ir.path, 0.3, 1e-4, runtime="openvino"),
            failing(whole.path, 0.3, 1e-4),
            failing(whole.path, 1e-6, 1e-4, runtime="openvino"),
        ]
    )
    with pytest.raises(StageError) as caught:
        check(found, (int8, ir, whole), tmp_path / "log.json")
    assert caught.value.where == "export/student.onnx in onnxruntime, f32, batch 16"
    assert caught.value.what.endswith(
        "2 others fail: export/student.xml in openvino by 3.0e-01 (limit 0.0001), "
        "quantized/student-int8.onnx in onnxruntime by 5.2e-01 (limit 0.25)"
    )
    assert "verify.tolerance" in caught.value.fix
    assert str(tmp_path / "log.json") in caught.value.fix
    assert VerifyReport.read(tmp_path / "log.json") == found


def test_a_coarse_int8_file_is_not_called_another_function(exported, tmp_path):
    int8 = of(exported, "onnx").model_copy(update={"variant": "int8", "path": "int8.onnx"})
    with pytest.raises(StageError) as caught:
        check(report([failing("int8.onnx", 0.3, 0.25, "int8")]), (int8,), tmp_path / "log.json")
    fix = caught.value.fix
    assert "more samples or another range" in fix
    assert "quantize.max_drop" in fix
    assert "verify.int8_tolerance" in fix
    assert "--layers" not in fix


def test_a_file_for_one_batch_size_only_fails_where_another_is_fed(exported, tmp_path):
    model = onnx.load(exported.folder / "student.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "single.onnx")
    file = of(exported, "onnx").model_copy(update={"path": str(tmp_path / "single.onnx")})
    edge = verifier_of(exported, (file,)).edges(file)[0]
    failed = {case.inputs for case in edge.cases if not case.passed}
    assert failed == {"batch 16", "batch 3", "batch 7", "saturated both"}
    with pytest.raises(StageError, match=r"batch 16: fails for inputs of shape \(16, 1, 8, 8\)"):
        check(report([edge]), (file,), tmp_path / "log.json")


def test_a_lower_precision_is_verified_where_this_cpu_has_it_and_told_where_not(exported, verifier):
    wanted = [("openvino", "bf16"), ("onnxruntime", "bf16")]
    edges = verifier.edges(of(exported, "openvino"), wanted)[2:]
    assert len(edges) + len(verifier.notes) == 1
    for edge in edges:
        assert edge.precision == "bf16"
        assert edge.passed
        assert edge.cases[0].tolerance == SETTINGS.bf16_tolerance
        assert edge.cases[0].max_error > 1e-5
    verifier.notes.clear()
    assert len(verifier.edges(of(exported, "onnx"), wanted)) == 2
    assert verifier.notes == [
        "not verified in bf16 on this machine: onnxruntime executes this file in f32, not in bf16"
    ]


@pytest.mark.slow
def test_int8_beyond_what_it_was_calibrated_for_is_told_and_not_judged(exported, tmp_path):
    pytest.importorskip("nncf")
    from edgekd.quantize.backend import quantize
    from edgekd.quantize.recipes import Recipe

    samples = list(exported.inputs[:, None])
    source = exported.folder / "student.onnx"
    recipe = Recipe(name="x", samples=32, reduced_range="off")
    quantize("onnx", source, exported.folder / "student-int8.onnx", recipe, samples)
    file = ExportedFile(
        role="student", format="onnx", variant="int8", path="export/student-int8.onnx", files=(),
        size=1, seconds=0,
    )  # fmt: skip
    files = (*exported.files, file)
    edges = verifier_of(exported, files).edges(file)
    assert [edge.source for edge in edges] == ["PyTorch", "export/student.onnx", "PyTorch"]
    for edge in edges:
        found = {case.inputs: case for case in edge.cases}
        assert edge.passed
        assert 1e-4 < found["batch 16"].max_error < found["batch 16"].tolerance == 0.25
        assert found["large constant"].tolerance is None
        assert found["large constant"].max_error > 0.25


def test_what_a_file_was_made_from(exported):
    ir, whole = of(exported, "openvino"), of(exported, "onnx")
    assert source_of(whole, exported.files) is None
    assert source_of(ir, exported.files) == whole
    straight = ir.model_copy(update={"producer": "openvino from PyTorch"})
    assert source_of(straight, exported.files) is None
    half = ir.model_copy(update={"variant": "f16", "path": "export/student-f16.xml"})
    assert source_of(half, exported.files) == ir


def test_a_file_that_was_trained_further_is_held_to_what_that_has_made(exported):
    """Its test answers are known; of extreme inputs nothing is asked."""
    file = of(exported, "onnx").model_copy(update={"trained": True})
    verifier = verifier_of(exported, (file,))
    answers = torch_outputs(exported.modules["student"], exported.inputs)
    verifier.know(RETRAINED, "student", answers)
    edge = verifier.edges(file)[0]
    assert edge.source == RETRAINED
    assert edge.passed
    compared = {case.inputs for case in edge.cases if case.max_error is not None}
    assert {"batch 16", "batch 1", "batch 3", "batch 7"} == compared
    verifier.know(RETRAINED, "student", 2 * answers)
    assert not verifier.edges(file)[0].passed


CASE = Case("batch 2", np.zeros((2, 1), np.float32), 2, real=True)
LOGITS = np.array([[1.0, -2.0], [0.0, 4.0]], np.float32)


def test_a_file_that_gives_nan_where_the_source_does_not_fails():
    found = LOGITS.copy()
    found[1, 0] = np.nan
    result = judge(CASE, LOGITS, found, 1e-4)
    assert not result.passed
    assert "not finite where PyTorch's are (1 of 2 samples)" in result.note
    assert judge(CASE, LOGITS, found, None).passed


def test_nothing_is_asked_where_the_source_has_no_finite_logits():
    broken = LOGITS.copy()
    broken[0, 0] = np.inf
    result = judge(CASE, broken, LOGITS, 1e-4)
    assert result.passed
    assert result.note == "the logits of PyTorch are not finite"
    assert judge(CASE, "PyTorch fails too: IndexError", LOGITS, 1e-4).passed


def test_a_file_with_other_classes_fails_even_where_errors_are_only_told():
    result = judge(CASE, LOGITS, LOGITS[:, :1], None)
    assert not result.passed
    assert "shape (2, 1)" in result.note


def test_small_logits_of_odd_inputs_are_measured_by_the_size_of_real_ones():
    small = LOGITS * 1e-6
    assert not judge(CASE, small, small + np.float32(1e-8), 1e-4).passed
    result = judge(CASE, small, small + np.float32(1e-8), 1e-4, scale=4.0)
    assert result.passed
    assert result.max_error == pytest.approx(1e-8 / 4, rel=1e-2)
