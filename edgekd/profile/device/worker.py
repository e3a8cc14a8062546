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

from . import memory
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


class _Worker:
    def __init__(self) -> None:
        self.session: Session | None = None
        self.inputs = np.zeros((0, 1), np.float32)

    def load(
        self, runtime: str, path: str, inputs: str, threads: int, precision: str
    ) -> dict[str, Any]:
        """Load the runtime, then the model. Seconds to ready, and memory before it."""
        self.inputs = np.load(inputs, allow_pickle=False)
        session = RUNTIMES[runtime].session
        session.warm()
        baseline = memory.resident()
        memory.reset_peak()
        started = time.perf_counter()
        self.session = session(path, threads, precision)
        return {
            "load": time.perf_counter() - started,
            "version": session.version(),
            "precision": self.session.precision,
            "baseline_rss": baseline,
        }

    def bind(self, batch_size: int) -> dict[str, Any]:
        """Use the first samples, repeated to the batch size; seconds of the first inference."""
        x = np.ascontiguousarray(np.resize(self.inputs, (batch_size, *self.inputs.shape[1:])))
        started = time.perf_counter()
        self._loaded().run(x)
        first = time.perf_counter() - started
        self._loaded().set_inputs(x)
        return {"first": first}

    def block(self, seconds: float) -> dict[str, Any]:
        """Infer for `seconds`, at least once; every call's nanoseconds as base64 of int64."""
        infer, clock = self._loaded().infer, time.perf_counter_ns
        samples: list[int] = []
        keep = samples.append
        gc.collect()
        gc.disable()
        before = clock()
        end = before + int(seconds * 1e9)
        while True:
            took = infer()
            now = clock()
            keep(now - before if took is None else took)
            if now >= end:
                break
            before = now
        gc.enable()
        return {"samples": base64.b64encode(np.array(samples, "<i8").tobytes()).decode()}

    def peak(self) -> dict[str, Any]:
        """The most memory that was resident since before the model was loaded."""
        return {"peak_rss": memory.peak()}

    def _loaded(self) -> Session:
        if self.session is None:
            raise RuntimeError("no model is loaded")
        return self.session
