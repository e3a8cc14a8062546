"""The fixture, as a user's test gets it: in a pytest of its own, on a real file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import UsageError
from edgekd.pytest_plugin import check_file

INPUTS = np.zeros((1, 1, 8, 8), np.float32)
ROOT = Path(__file__).parents[1]


def check(model, tmp_path, **arguments):
    check_file(model, folder=tmp_path, inputs=INPUTS, max_seconds=0.6, **arguments)


@pytest.mark.parametrize("name", ["student.onnx", "student.xml"])
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
    with pytest.raises(ValueError, match="20 ms"):
        check(exported.folder / "student.onnx", tmp_path, p50="20")


def test_a_users_test_gets_the_fixture(exported, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import numpy as np\n"
        f"MODEL = {str(exported.folder / 'student.onnx')!r}\n"
        "X = np.zeros((1, 1, 8, 8), np.float32)\n"
        "def test_small(edgekd_budget): edgekd_budget(MODEL, inputs=X, size='1 MB', max_seconds=0.5)\n"
        "def test_tiny(edgekd_budget): edgekd_budget(MODEL, inputs=X, size='1 B', max_seconds=0.5)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "edgekd.pytest_plugin", "test_mine.py"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "size on local/onnxruntime" in result.stdout
