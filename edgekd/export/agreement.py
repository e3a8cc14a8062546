"""Do two programs give the same outputs for the same real inputs? For choices made while exporting.

The check that counts is stage `verify`, on the files and more samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

# As a share of the largest output: float32 sums in another order differ by less, also in deep networks
# (3e-5 in an untrained ResNet-50); another function by far more.
CLOSE = 1e-4


def reference(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """What PyTorch gives, one array per output."""
    import torch

    with torch.inference_mode():
        outputs = module(*inputs.values())
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    elif isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return [output.numpy() for output in outputs]


def onnx_outputs(model: Path | bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime gives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, inputs)
    return outputs


def difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """max|Δ| / max|expected| of the worst output; infinite for other shapes or no numbers."""
    if [x.shape for x in expected] != [x.shape for x in found]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        scale = max(float(np.abs(a).max(initial=0)), float(np.finfo(np.float32).tiny))
        gap = float(np.abs(a.astype(np.float64) - b).max(initial=0)) / scale
        worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    return worst
