"""Speed-aware quantization: layers that INT8 slows down are left alone, by short measurements in turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.profile.device.runtimes import RUNTIMES, Session, load
from edgekd.quantize.backend import write
from edgekd.quantize.qdq import layers, reverted
from edgekd.results import LayerSpeed

if TYPE_CHECKING:
    from onnx import ModelProto

# A layer goes back when the model is faster by more than this without its quantization …
_FASTER = 0.02
# … in nearly all of the blocks, which take about so many seconds each.
_BLOCKS = 9
_BLOCK = 0.01
_MOST_CALLS = 200


def slow_layers(
    quantized: ModelProto,
    original: ModelProto,
    format: str,
    sample: np.ndarray,
    *,
    threads: int,
    precision: str,
    told: Callable[[], None] = lambda: None,
) -> tuple[frozenset[str], tuple[LayerSpeed, ...]]:
    """The layers that slow the file of this format down when they are quantized, and every layer's cost.

    One layer after the other is reverted; what makes the file faster stays reverted, so that layers
    that only pay off together are seen together. `sample` is an input (1, …).
    """
    runtime = next(name for name in RUNTIMES if format in RUNTIMES[name].formats)
    with tempfile.TemporaryDirectory() as folder:

        def opened(model: ModelProto, name: str) -> Session:
            suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
            (path, *_) = write(model, format, Path(folder) / f"{name}{suffix}")
            session = load(runtime, path, threads=threads, precision=precision)
            session.set_inputs(sample)
            return session

        kept: frozenset[str] = frozenset()
        found = []
        best = opened(quantized, "best")
        for number, name in enumerate(layers(quantized)):
            candidate = opened(reverted(quantized, original, kept | {name}), f"layer{number}")
            ratio, wins = in_turns(best, candidate)
            back = ratio < 1 - _FASTER and wins >= _BLOCKS - 1
            found.append(LayerSpeed(layer=name, ratio=ratio, reverted=back))
            if back:
                kept, best = kept | {name}, candidate
            told()
    return kept, tuple(found)


def in_turns(one: Session, other: Session) -> tuple[float, int]:
    """How long `other` takes as a share of `one`, the median of the blocks, and in how many it is less."""
    first = max(_seconds(session, 3) for session in (one, other))
    calls = max(1, min(_MOST_CALLS, int(_BLOCK / max(first, 1e-9))))
    blocks = [(_seconds(one, calls), _seconds(other, calls)) for _ in range(_BLOCKS)]
    return statistics.median(b / a for a, b in blocks), sum(b < a for a, b in blocks)


def _seconds(session: Session, calls: int) -> float:
    """The median inference."""
    import time

    times = []
    for _ in range(calls):
        started = time.perf_counter_ns()
        told = session.infer()
        times.append((time.perf_counter_ns() - started if told is None else told) / 1e9)
    return statistics.median(times)
