"""The example, smaller: reviews and a teacher made here, to files that read texts."""

import json
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import yaml
from tokenizers import Tokenizer

from tests.text.conftest import EXAMPLE, module

pytestmark = pytest.mark.slow


def test_a_bert_becomes_small_files_that_read_reviews(tmp_path):
    reviews, teacher = module("reviews"), module("teacher")
    data = reviews.write(tmp_path / "reviews", train=2000, test=400)
    teacher.train(data, tmp_path / "teacher", dim=64, depth=2, epochs=24, rate=2e-3)
    config = yaml.safe_load((EXAMPLE / "compress.yaml").read_text())
    config["student"]["args"] = {"dim": 32, "depth": 2, "heads": 4}
    config["distill"]["epochs"] = 10
    config["profile"] |= {"max_seconds": 1, "launches": 2, "operators": False}
    config["gate"]["budgets"] = [
        # So small a teacher has 86 to 99 % of two classes, by the run.
        {"metric": "accuracy", "min": "90 %"},
        {"metric": "accuracy_drop", "max": "5 points"},
        {"metric": "compression", "min": "3 x"},
    ]
    path = tmp_path / "compress.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", "compress", str(path), "--json", "-q"],
        capture_output=True, text=True, cwd=tmp_path,
        # OpenVINO sends telemetry from a fork of the process, which can hang; not in CI.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    run = tmp_path / "runs/text"
    tokenizer = Tokenizer.from_file(str(run / "export/tokenizer.json"))
    classes = json.loads((run / "student/model.json").read_text())["classes"]
    session = onnxruntime.InferenceSession(run / "quantized/student-int8.onnx")
    for text, label in (
        ("the camera is hardly blurry.", "positive"),
        ("the camera is great, but the strap is flimsy.", "negative"),
        ("the menu is neat, and the wheel is not sturdy.", "mixed"),
    ):
        ids = np.array([tokenizer.encode(text).ids])
        (logits,) = session.run(None, {"input": ids})
        assert classes[logits.argmax()] == label, text
    page = (run / "report.html").read_text("utf-8")
    with np.load(run / "verify/examples.npz") as examples:
        assert ("<q>" in page) == bool(len(examples["positions"]))
    assert "token ids" in (run / "MODEL_CARD.md").read_text("utf-8")
