"""What of an executed operator tells how long it takes: work, bytes and geometry, from its shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.profile.predict.records import Peaks
from edgekd.profile.predict.steps import Step, elements

# Vectors of AVX-512 and of NEON hold 16 and 4 float32; the runtimes block channels by them.
_BLOCKS = (16, 4)
_PRODUCTS = (
    "Conv",
    "FusedConv",
    "Convolution",
    "GroupConvolution",
    "ConvTranspose",
    "Deconvolution",
)
_MATRICES = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "FullyConnected")
_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Operations, values read and written, and the sizes that decide how well it runs."""

    flops: float
    read: float
    weights: float
    written: float
    inner: float
    outer: float
    places: float
    width: float
    window: float
    stride: float
    groups: float

    def roof(self, peaks: Peaks, precision: str) -> float:
        """Seconds by the roofline: the longer of arithmetic and traffic through the caches."""
        peak = peaks.flops.get(precision) or max(peaks.flops.values())
        size = _BYTES * (self.read + self.weights + self.written)
        return max(self.flops / peak, size / peaks.cache_bandwidth, 1e-9)


def work(step: Step) -> Work:
    """Of one operator. Shapes that make no sense for its type count as an elementwise one."""
    output = step.outputs[0] if step.outputs else (1,)
    read, written = elements(step.inputs), elements(step.outputs)
    # What is not a tensor of weights (axes, shapes, scalars) is no traffic.
    weight = max(step.weights, key=lambda s: elements([s]), default=())
    weights = elements([weight]) if weight else 0
    width = output[-1] if output else 1
    flops, inner, outer, places = float(max(read, written)), 1.0, 1.0, float(written)
    window = stride = groups = 1.0
    data = step.inputs[0] if step.inputs else output
    if step.type in _PRODUCTS and len(weight) >= 3 and len(output) >= 3 and len(data) >= 3:
        outer, places = output[1], written / max(1, output[1])
        per_output = weights / max(1, outer)
        flops = 2.0 * written * per_output
        window = math.prod(weight[-(len(output) - 2) :])
        inner = per_output / max(1, window)
        groups = data[1] / max(1.0, inner)
        stride = max(1.0, round(data[-1] / max(1, width)))
    elif step.type in _MATRICES and data:
        inner, outer, places = data[-1], width, written / max(1, width)
        flops = 2.0 * written * inner
        groups = math.prod(data[:-2]) if len(step.inputs) > 1 and len(data) > 2 else 1
    elif "Pool" in step.type and len(output) > 2 and len(data) > 2:
        stride = max(1.0, round(data[-1] / max(1, width)))
        outer, places = output[1], written / max(1, output[1])
    elif len(output) > 1:
        outer, places = output[1], written / max(1, output[1])
        inner = read / max(1, written)
    return Work(
        flops, read, weights, written, inner, outer, places, width, window, stride, groups
    )  # fmt: skip


def matrix(steps: Sequence[Step], peaks: Peaks, precision: str) -> np.ndarray:
    """The features of a network's operators (operators, features); the first is log(roofline seconds).

    Weights that all together do not fit a cache come from farther away in every inference: what the
    whole network holds is a feature of each operator.
    """
    held = _BYTES * sum(work(step).weights for step in steps)
    return np.stack([_vector(step, peaks, precision, held) for step in steps])


def _vector(step: Step, peaks: Peaks, precision: str, held: float) -> np.ndarray:
    """Logarithms of sizes, and how well channels fill vectors."""
    w = work(step)
    roof = w.roof(peaks, precision)
    traffic = _BYTES * (w.read + w.weights + w.written)
    sizes = (
        roof, w.flops, traffic, w.read, w.weights, w.written, w.inner, w.outer, w.places, w.width,
        w.window, w.stride, w.groups, w.flops / max(1.0, traffic), held + 1,
        w.roof(peaks, precision) + _BYTES * w.weights / peaks.bandwidth,
    )  # fmt: skip
    filled = [
        size / (max(1, math.ceil(size / b)) * b) for size in (w.inner, w.outer) for b in _BLOCKS
    ]
    return np.array(
        [
            *(math.log(max(size, 1e-12)) for size in sizes),
            *filled,
            len(step.inputs),
            step.fused,
            # Cheap ones are free where they are fused; others are arithmetic of their own.
            float(step.activation not in ("", "Relu", "Clip")),
        ]
    )


def family(step: Step) -> str:
    """Operators that run the same code: the type and the implementation, such as "Conv nchwc"."""
    return f"{step.type} {step.kernel}".strip()
