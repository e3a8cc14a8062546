"""The process of one model: loads it, then times blocks of inferences as it is told.

One JSON object per line on standard input and output; the end of the input is the end of the process.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from . import limits, memory
from .environment import waited_for_core
from .roofline import measure_roofline
from .runtimes import RUNTIMES, Session


def main() -> None:
    """Answer every request with one line: the result, or {"error": …}."""
    # Ctrl-C goes to the whole group; the measuring process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = _private_output()
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(answer), file=answers, flush=True)


def _private_output() -> Any:
    """Standard output for the answers alone: what native code prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _batch(inputs: np.ndarray, size: int) -> np.ndarray:
    """The first samples, repeated to the batch size."""
    return np.ascontiguousarray(np.resize(inputs, (size, *inputs.shape[1:])))


class _Worker:
    def __init__(self) -> None:
        self.session: Session | None = None
        self.inputs = np.zeros((0, 1), np.float32)
        self.before: int | None = None

    def start(
        self, runtime: str, inputs: str, groups: list[str], data: int | None
    ) -> dict[str, Any]:
        """Confine this process, then load the runtime. Seconds of that, and memory before a model."""
        limits.enter(groups, data)
        self.inputs = np.load(inputs, allow_pickle=False)
        python = memory.resident()
        session = RUNTIMES[runtime].session
        started = time.perf_counter()
        session.warm()
        seconds = time.perf_counter() - started
        self.before = memory.private_dirty()
        return {
            "runtime_seconds": seconds,
            "version": session.version(),
            "build": session.build(),
            "python_rss": python,
            "baseline_rss": memory.resident(),
        }

    def load(self, runtime: str, path: str, threads: int, precision: str) -> dict[str, Any]:
        """Load the model. Seconds to ready."""
        memory.reset_peak()
        started = time.perf_counter()
        self.session = RUNTIMES[runtime].session(path, threads, precision)
        return {
            "load": time.perf_counter() - started,
            "compile": self.session.compile_seconds,
            "precision": self.session.precision,
        }

    def bind(self, batch_size: int) -> dict[str, Any]:
        """Use the first samples, repeated to the batch size; seconds of the first inference."""
        x = _batch(self.inputs, batch_size)
        started = time.perf_counter()
        self._loaded().run(x)
        first = time.perf_counter() - started
        self._loaded().set_inputs(x)
        self._loaded().infer()
        return {"first": first}

    def block(self, seconds: float) -> dict[str, Any]:
        """Infer for `seconds`, at least once; every call's nanoseconds as base64 of int64."""
        infer, clock = self._loaded().infer, time.perf_counter_ns
        samples: list[int] = []
        keep = samples.append
        gc.collect()
        gc.disable()
        waited = waited_for_core()
        before = clock()
        end = before + int(seconds * 1e9)
        while True:
            took = infer()
            now = clock()
            keep(now - before if took is None else took)
            if now >= end:
                break
            before = now
        waited_too = waited_for_core()
        gc.enable()
        return {
            "samples": base64.b64encode(np.array(samples, "<i8").tobytes()).decode(),
            "waited": None if waited is None or waited_too is None else waited_too - waited,
        }

    def outputs(self, first: int, count: int) -> dict[str, Any]:
        """The first output for samples `first` to `first` + `count`, as base64 of float32."""
        found = self._loaded().run(np.ascontiguousarray(self.inputs[first : first + count]))[0]
        data = base64.b64encode(found.astype("<f4").tobytes()).decode()
        return {"outputs": data, "shape": found.shape}

    def memory(self) -> dict[str, Any]:
        """The most that was resident since before the model was loaded, and what of it is the model's own.

        To be asked before blocks are run, whose samples are Python's memory and not the model's.
        """
        now = memory.private_dirty()
        return {
            "peak_rss": memory.peak(),
            "private_dirty": None if now is None or self.before is None else now - self.before,
        }

    def operators(
        self, runtime: str, path: str, threads: int, precision: str, batch_size: int, seconds: float
    ) -> dict[str, Any]:
        """Time every operator of a model in a session that is profiled."""
        x = _batch(self.inputs, batch_size)
        return RUNTIMES[runtime].session.operators(path, threads, precision, x, seconds)

    def roofline(self, runtime: str, threads: int, precisions: list[str]) -> dict[str, Any]:
        """The most that this device does in this runtime."""
        session = RUNTIMES[runtime].session
        return measure_roofline(session.multiply, runtime, session.version(), threads, precisions)

    def _loaded(self) -> Session:
        if self.session is None:
            raise RuntimeError("no model is loaded")
        return self.session
