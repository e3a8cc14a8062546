"""Do device files answer as the files that they were made from?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.profile.device.runtimes import load
from edgekd.results import DeviceFile, DeviceFileParity
from edgekd.tasks.kinds.classification import accuracy

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.data.resolve import Dataset

RUNTIME = {"onnx": "onnxruntime", "ort": "onnxruntime", "openvino": "openvino"}
_BATCH = 256


def device_parity(
    file: DeviceFile, root: Path, dataset: Dataset, logits: np.ndarray, tolerance: float
) -> DeviceFileParity:
    """Feed the test split to a device file as a device does; `logits` are its original's."""
    runtime = RUNTIME[file.format]
    session = load(runtime, root / file.path, threads=1, precision="f32")
    batches = [dataset.test[i : i + _BATCH] for i in range(0, len(dataset.test), _BATCH)]
    found = np.concatenate([session.run(_inputs(file, dataset, batch))[0] for batch in batches])
    reference = logits.astype(np.float64)
    scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    margin = tolerance * scale
    answers = found if file.output == "argmax" else found.argmax(1)
    differ = answers != reference.argmax(1)
    # The answer may be the other one of two that are as good as equal.
    chosen = np.take_along_axis(reference, answers[:, None].astype(np.int64), 1)[:, 0]
    undecided = differ & (reference.max(1) - chosen <= 2 * margin)
    error = None
    if file.output == "logits":
        error = float(np.abs(reference - found).max()) / scale
    elif file.output == "softmax":
        # A probability changes by less than the logits do: |∂p/∂z| = p(1 − p) at most.
        error, tolerance = float(np.abs(_softmax(reference) - found).max()), min(1.0, margin)
    labels = dataset.labels[dataset.test]
    return DeviceFileParity(
        path=file.path,
        format=file.format,
        variant=file.variant,
        runtime=runtime,
        input=file.input,
        input_type=file.input_type,
        output=file.output,
        samples=len(labels),
        max_error=error,
        agreement=float(1 - differ.mean()),
        undecided=int(undecided.sum()),
        tolerance=tolerance,
        passed=bool((differ == undecided).all()) and (error is None or error <= tolerance),
        accuracy=accuracy(answers, labels, len(dataset.classes)),
    )


def _inputs(file: DeviceFile, dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    if file.input == "normalised":
        return dataset.tensor(indices).numpy()
    return np.ascontiguousarray(dataset.inputs[indices].astype(file.input_type, copy=False))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares
