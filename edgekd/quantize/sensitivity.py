"""How much each layer suffers when it alone is quantized, by the logits of a few samples."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgekd.profile.device.runtimes import load
from edgekd.progress import Task
from edgekd.quantize.backend import Quantized
from edgekd.results import LayerSensitivity

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
RUNTIME = {"onnx": "onnxruntime", "openvino": "openvino"}
_BATCH = 256


def logits(format: str, path: Path, inputs: np.ndarray) -> np.ndarray:
    """What a file answers to `inputs` (n, …) in its own runtime: (n, classes) float64."""
    session = load(RUNTIME[format], path, threads=1, precision="f32")
    batches = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    return np.concatenate([session.run(batch)[0] for batch in batches]).astype(np.float64)


def sensitivities(
    format: str,
    quantized: Quantized,
    inputs: np.ndarray,
    student: np.ndarray,
    teacher: np.ndarray,
    task: Task,
) -> tuple[LayerSensitivity, ...]:
    """Of every layer, the most sensitive first.

    `inputs` (n, …) are calibration samples, `student` the float32 file's logits for them and
    `teacher` the teacher's. Layers are ordered by D = ½·KL(p_t ‖ q) + ½·KL(p_s ‖ q) where q is the
    softmax of the file in which only that layer is quantized, then by falling SNR.
    """
    found = []
    before = _divergence(teacher, student, student)
    with TemporaryDirectory(prefix="edgekd-sensitivity-") as folder:
        for layer in quantized.layers:
            path = Path(folder, f"layer{SUFFIX[format]}")
            quantized.write(path, [name for name in quantized.layers if name != layer])
            answer = logits(format, path, inputs)
            found.append(
                LayerSensitivity(
                    layer=layer,
                    snr=_snr(student, answer),
                    divergence=_divergence(teacher, student, answer) - before,
                )
            )
            task.advance(layer=layer)
    return tuple(sorted(found, key=lambda s: (-s.divergence, math.inf if s.snr is None else s.snr)))


def _divergence(teacher: np.ndarray, student: np.ndarray, answer: np.ndarray) -> float:
    return (_kl(teacher, answer) + _kl(student, answer)) / 2


def _kl(reference: np.ndarray, answer: np.ndarray) -> float:
    """Mean KL(softmax(reference) ‖ softmax(answer)) in nats."""
    log_p, log_q = _log_softmax(reference), _log_softmax(answer)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _snr(reference: np.ndarray, answer: np.ndarray) -> float | None:
    """10·log10(Σ reference² / Σ Δ²) in dB; None where one of them is 0."""
    signal, noise = float((reference**2).sum()), float(((reference - answer) ** 2).sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
