"""The fixture, as a user's test gets it: in a pytest of its own, on a real file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import pytest_plugin
from edgekd.errors import UsageError
from edgekd.gate.figures import Figure
from edgekd.pytest_plugin import check_file

INPUTS = np.zeros((1, 1, 8, 8), np.float32)
ROOT = Path(__file__).parents[1]


def check(model, tmp_path, **arguments):
    check_file(model, folder=tmp_path, inputs=INPUTS, max_seconds=0.6, **arguments)


@pytest.mark.parametrize(
    "name", ["student.onnx", pytest.param("student.xml", marks=pytest.mark.slow)]
)
def test_a_generous_budget_passes_and_a_tight_one_fails_with_the_figures(exported, tmp_path, name):
    check(exported.folder / name, tmp_path, size="1 MB", memory="500 MB")
    check(exported.folder / name, tmp_path, p50="10 s", p95="20 s", on_inconclusive="pass")
    with pytest.raises(AssertionError, match=r"latency_p50 on local/.*budget ≤ 100 ns"):
        check(exported.folder / name, tmp_path, p50="100 ns")
    with pytest.raises(AssertionError, match="size on local"):
        check(exported.folder / name, tmp_path, size="10 B")


def test_what_cannot_be_checked_is_refused(exported, tmp_path):
    with pytest.raises(TypeError, match="some of p50, p90"):
        check(exported.folder / "student.onnx", tmp_path, p97="1 s")
    with pytest.raises(TypeError, match="none"):
        check(exported.folder / "student.onnx", tmp_path)
    with pytest.raises(UsageError, match=r"should be an existing \.onnx or \.xml file"):
        check(tmp_path / "model.pt", tmp_path, p50="1 s")
    with pytest.raises(UsageError, match="edgekd_budget: unknown target 'lokal'"):
        check(exported.folder / "student.onnx", tmp_path, target="lokal", p50="1 s")
    for limit in ("20", "-20 ms", 20):
        with pytest.raises(UsageError, match=r"^edgekd_budget: p50: .*20") as caught:
            check(exported.folder / "student.onnx", tmp_path, p50=limit)
        assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("conclusive", [True, False])
def test_a_wide_interval_on_the_good_side_of_the_limit_passes(
    exported, tmp_path, monkeypatch, conclusive
):
    measured = []

    def figures(*_):
        measured.append(1)
        return [Figure("latency_p50", 7.2e-6, (7e-6, 9e-6), "onnxruntime", "local", conclusive)]

    monkeypatch.setattr(pytest_plugin, "_figures", figures)
    check(exported.folder / "student.onnx", tmp_path, p50="20 ms")
    assert len(measured) == 1


def test_an_undecided_limit_is_measured_once_more(exported, tmp_path, monkeypatch):
    looks = [(7e-6, 9e-6), (7e-6, 7.5e-6)]

    def figures(model, inputs, target, settings, folder):
        interval = looks.pop(0)
        size = 1e3 if looks else 1e9  # of the first look: it is exact
        return [
            Figure("latency_p50", 7.2e-6, interval, "onnxruntime", "local"),
            Figure("size", size, None, "onnxruntime", "local"),
        ]

    monkeypatch.setattr(pytest_plugin, "_figures", figures)
    check(exported.folder / "student.onnx", tmp_path, p50="8 us", size="1 MB")
    assert looks == []


@pytest.mark.parametrize("name", ["student.onnx", "student.xml"])
def test_inputs_are_made_up_of_the_files_own_shape(exported, tmp_path, name):
    path = exported.folder / name
    check_file(path, "local", folder=tmp_path, max_seconds=0.3, size="1 MB")
    assert pytest_plugin._random_inputs(path).shape == (1, 1, 8, 8)
    (tmp_path / name).write_bytes(b"nothing")
    (tmp_path / name).with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot be opened|is not an ONNX model"):
        check_file(tmp_path / name, folder=tmp_path, size="1 MB")


def test_a_shape_that_is_open_needs_inputs(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "length"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(UsageError, match=r"\(1, \?\)(.|\n)*edgekd_budget\(inputs="):
        check_file(tmp_path / "open.onnx", folder=tmp_path, size="1 MB")


def test_a_users_test_gets_the_fixture(exported, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import numpy as np\n"
        f"MODEL = {str(exported.folder / 'student.onnx')!r}\n"
        "X = np.zeros((1, 1, 8, 8), np.float32)\n"
        "def test_small(edgekd_budget): edgekd_budget(MODEL, inputs=X, size='1 MB', max_seconds=0.5)\n"
        "def test_tiny(edgekd_budget): edgekd_budget(MODEL, 'local', inputs=X, size='1 B', max_seconds=0.5)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "edgekd.pytest_plugin", "test_mine.py"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "size on local/onnxruntime" in result.stdout
