"""The example in docs/export.md is what runs here."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

DOCS = Path(__file__).parents[2] / "docs/export.md"


def test_the_example_with_two_inputs_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    session = onnxruntime.InferenceSession(tmp_path / "exported/student.onnx")
    feed = {"input_ids": np.ones((3, 7), np.int64), "attention_mask": np.ones((3, 7), np.int64)}
    assert session.run(None, feed)[0].shape == (3, 2)
    assert (tmp_path / "exported/student.xml").exists()
