"""Real IDX files to a report, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def mnist():
    root = os.environ.get("EDGEKD_DATA")
    if not root or not Path(root, "mnist").is_dir():
        pytest.skip("EDGEKD_DATA has no mnist folder")
    return Path(root)


def test_mnist_idx_files_to_a_report_that_passes_its_budgets(mnist, tmp_path):
    config = {
        "name": "mnist",
        "data": {"source": "idx:$EDGEKD_DATA/mnist", "limit": 4000, "augment": {"crop": 2}},
        "teacher": {"model": "zoo:resnet8", "train": {"epochs": 5, "learning_rate": 0.1}},
        "student": {"model": "zoo:dscnn", "args": {"width": 8}},
        "distill": {"epochs": 8, "learning_rate": 0.1},
        "profile": {"max_seconds": 1, "launches": 2},
        "gate": {
            "on_inconclusive": "warn",
            "budgets": [
                {"metric": "accuracy", "min": "90 %"},
                {"metric": "compression", "min": "5 x"},
                {"metric": "speedup", "min": "1.5 x", "runtime": "onnxruntime"},
                {"metric": "parity_error", "max": "1e-4"},
            ],
        },
    }
    path = tmp_path / "mnist.yaml"
    path.write_text(yaml.safe_dump(config))
    result = subprocess.run(
        [sys.executable, "-m", "edgekd", "compress", str(path), "--json", "-q"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "EDGEKD_DATA": str(mnist)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert json.loads(result.stdout)["schema"] == 1
    run = tmp_path / "runs" / "mnist"
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")
    verify = json.loads((run / "verify/parity.json").read_text())
    teacher = max(f["accuracy"]["value"] for f in verify["files"] if f["role"] == "teacher")
    assert teacher > 0.96
