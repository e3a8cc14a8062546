"""Nothing that edgekd runs on tells its maker about it."""

import os
import subprocess
import sys

import pytest

CONVERTED_RUN_AND_QUANTIZED = """
import edgekd
import numpy as np, onnxruntime, openvino, sys, threading, torch
import nncf
from nncf.telemetry.wrapper import telemetry
from openvino.tools.ovc import telemetry_utils
from edgekd.profile.device.runtimes.onnxruntime import ONE_NODE

onnxruntime.InferenceSession(ONE_NODE).run(None, {"x": np.zeros(1, np.float32)})
openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub", telemetry_utils.tm
assert type(telemetry).__name__ == "MagicMock", telemetry
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""
ON_THE_DEVICE = """
import edgekd.profile.device, onnxruntime
from edgekd.profile.device.runtimes.onnxruntime import ONE_NODE
onnxruntime.InferenceSession(ONE_NODE)
"""


@pytest.mark.parametrize("program", [CONVERTED_RUN_AND_QUANTIZED, ON_THE_DEVICE])
def test_nobody_is_told(tmp_path, program):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "NNCF_CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**environment, "HOME": str(tmp_path)}
    )
    assert not list(tmp_path.rglob("*onnxruntime*"))
    assert not list(tmp_path.rglob("*openvino*"))


def test_who_asks_for_it_has_it(tmp_path):
    program = (
        "import openvino_telemetry, sys; import edgekd; assert sys.modules['openvino_telemetry']"
    )
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0", "HOME": str(tmp_path)}
    program += "; import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
