"""Accuracy-aware quantization: the layers that lose most go back to float32 until `max_drop` holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.quantize.qdq import layers, reverted
from edgekd.results import LayerSensitivity, TradeOff
from edgekd.verify.parity import compare

if TYPE_CHECKING:
    from onnx import ModelProto

# Seconds that looking at all the layers may take, about, and the fewest samples to look at.
_SECONDS = 60.0
_FEWEST = 8


@dataclass(frozen=True)
class Labelled:
    """Inputs (n, …) float32 and labels (n,) of the validation split."""

    inputs: np.ndarray
    labels: np.ndarray


def run_onnx(model: ModelProto, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """The first output (n, …) of the model in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), _options(), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    parts = [inputs[i : i + batch] for i in range(0, len(inputs), batch)]
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


def _options() -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def sensitivities(
    quantized: ModelProto,
    original: ModelProto,
    inputs: np.ndarray,
    teacher: np.ndarray,
    told: Callable[[], None] = lambda: None,
) -> tuple[LayerSensitivity, ...]:
    """What every layer's quantization alone does to the logits, the most sensitive layer first.

    `inputs` (n, …) are calibration samples, `teacher` (n, classes) its logits for them. As many are
    looked at as fit into a minute. `told` is called after each layer.
    """
    names = layers(quantized)
    started = time.monotonic()
    run_onnx(original, inputs[:_FEWEST])
    one = (time.monotonic() - started) / _FEWEST
    count = int(np.clip(_SECONDS / max(1e-9, one * len(names)), _FEWEST, len(inputs)))
    inputs, teacher = inputs[:count], teacher[:count]
    reference = run_onnx(original, inputs)
    before = kl_divergence(teacher, reference)
    found = []
    for name in names:
        logits = run_onnx(reverted(quantized, original, set(names) - {name}), inputs)
        errors = compare(reference, logits, where=name)
        found.append(
            LayerSensitivity(
                layer=name,
                snr=errors.snr,
                teacher_kl=kl_divergence(teacher, logits) - before,
                agreement=errors.agreement,
                samples=count,
            )
        )
        told()
    return tuple(sorted(found, key=lambda f: np.inf if f.snr is None else f.snr))


def kl_divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean KL(teacher ‖ student) of the softmax of logits (n, classes), in nats."""

    def log_softmax(z: np.ndarray) -> np.ndarray:
        z = z.astype(np.float64) - z.max(axis=1, keepdims=True)
        result: np.ndarray = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return result

    log_p, log_q = log_softmax(teacher), log_softmax(student)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def accuracy(model: ModelProto, validation: Labelled) -> float:
    """Top-1 accuracy in ONNX Runtime, a share."""
    answers = run_onnx(model, validation.inputs).argmax(axis=1)
    return float((answers == validation.labels).mean())


def revert_until_it_holds(
    quantized: ModelProto,
    original: ModelProto,
    ranked: Collection[str],
    validation: Labelled,
    *,
    max_drop: float,
    max_evaluations: int,
    always: frozenset[str] = frozenset(),
    told: Callable[[TradeOff], None] = lambda point: None,
) -> tuple[frozenset[str], tuple[TradeOff, ...]]:
    """The fewest of the layers `ranked` (most sensitive first) to be reverted, and the curve.

    One, two, four … layers are reverted until accuracy on `validation` falls by at most `max_drop`
    (a share), then the number is halved in. The float32 model itself is not counted among the
    `max_evaluations`; where they do not suffice, everything goes back. `always` are reverted anyway.
    """
    order = [name for name in ranked if name not in always]
    expected = accuracy(original, validation)
    points: dict[int, TradeOff] = {}

    def evaluate(count: int) -> bool:
        keep = always | set(order[:count])
        model = reverted(quantized, original, keep)
        value = accuracy(model, validation)
        points[count] = TradeOff(
            layers=tuple(sorted(keep)),
            accuracy=value,
            drop=expected - value,
            size=model.ByteSize(),
            holds=expected - value <= max_drop,
        )
        told(points[count])
        return points[count].holds

    fails, holds = -1, len(order)
    count = 0
    while len(points) < max_evaluations and fails + 1 < holds and count < len(order):
        if evaluate(count):
            holds = count
        else:
            fails = count
        count = min(max(1, 2 * count), len(order)) if holds == len(order) else (fails + holds) // 2
        if count in points:
            break
    if holds == len(order) and holds not in points:
        evaluate(holds)
    curve = tuple(points[number] for number in sorted(points))
    return always | frozenset(order[:holds]), curve
