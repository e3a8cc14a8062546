"""Measure models against each other: fresh processes that take turns in short blocks.

The procedure, for the models of one runtime:
1. each is loaded in a process of its own; a process that is not its turn waits and uses no CPU;
2. warm-up: blocks in turn until the medians of a model's last four blocks agree within 5 %;
3. rounds: every model runs one block, in rotated order (A B, B A, …), so that drift hits all;
4. the end: when for every model the 95 % interval of the median, from the medians of its blocks
   as independent observations (order statistics), is narrower than asked, and the least time was
   spent; or when the time is up, which makes it inconclusive;
5. the same with a larger batch, for the throughput;
6. where the plan asks for it, when all of this is over and in processes of their own: the time of
   every operator, and what the device can do at most. These may fail; the rest stands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .environment import complaints, describe, state
from .intervals import quantile_interval

Say = Callable[[dict[str, Any]], None]
BLOCK_SECONDS = 0.03
_STEADY_BLOCKS, _STEADY_SHARE = 4, 0.05
_OPERATOR_SECONDS = 0.5


class MeasureError(Exception):
    """A model could not be measured; the text says which and why."""


def measure(plan: dict[str, Any], folder: Path, say: Say) -> None:
    """Do what `plan` says and write `result.json` and `samples.npz` to `folder`.

    `plan`: `models` (list of id, runtime, path, threads, precision; `parts`, all files that the
    model consists of, is for who sends it), `inputs` (an .npy file),
    `batch_size`, `throughput_batch_size`, `interval`, `min_seconds`, `max_seconds`; `phases`
    (default latency and throughput); `operators` (default false).
    Raises MeasureError.
    """
    environment = describe()
    results: dict[str, Any] = {}
    samples: dict[str, np.ndarray] = {}
    for runtime in dict.fromkeys(model["runtime"] for model in plan["models"]):
        models = [model for model in plan["models"] if model["runtime"] == runtime]
        _measure_together(models, plan, say, results, samples)
    after = state()
    extra = _anatomy(plan, say) if plan.get("operators") else {}
    result = {
        "models": results,
        **extra,
        "environment": {**environment, "state_after": after},
        "warnings": complaints(environment["state"], after, environment["usable_cores"]),
    }
    with (folder / "samples.npz").open("wb") as file:
        np.savez(file, **samples)  # type: ignore[arg-type]
    (folder / "result.json").write_text(json.dumps(result, indent=2))


def _anatomy(plan: dict[str, Any], say: Say) -> dict[str, Any]:
    """`operators` by model and `rooflines` by "runtime/threads"; {"error": …} for what failed."""
    seconds = min(_OPERATOR_SECONDS, plan["max_seconds"])
    operators, rooflines = {}, {}
    for model in plan["models"]:
        operators[model["id"]] = _try(
            model, plan, do="operators", batch_size=plan["batch_size"], seconds=seconds
        )
        name = f"{model['runtime']}/{model['threads']}"
        if name not in rooflines:
            precisions = sorted({model["precision"], "int8"})
            rooflines[name] = _try(model, plan, do="roofline", precisions=precisions)
        say({"phase": "operators", "models": [model["id"]], "spent": seconds, "width": None})
    return {"operators": operators, "rooflines": rooflines}


def _try(model: dict[str, Any], plan: dict[str, Any], do: str, **request: Any) -> dict[str, Any]:
    """One request to a process of its own."""
    try:
        with _worker(model, plan["inputs"]) as worker:
            about = (
                worker.load if do == "operators" else {k: model[k] for k in ("runtime", "threads")}
            )
            return worker.ask(do=do, **about, **request)
    except MeasureError as error:
        return {"error": str(error)}


def _measure_together(
    models: list[dict[str, Any]],
    plan: dict[str, Any],
    say: Say,
    results: dict[str, Any],
    samples: dict[str, np.ndarray],
) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(model, plan["inputs"])) for model in models]
        for worker in workers:
            results[worker.id] = worker.ask(do="load", **worker.load)
        batch_sizes = {
            "latency": plan["batch_size"],
            "throughput": plan["throughput_batch_size"],
        }
        for phase in plan.get("phases", batch_sizes):
            batch_size = batch_sizes[phase]
            for worker in workers:
                first = worker.ask(do="bind", batch_size=batch_size)
                if phase == "latency":
                    results[worker.id] |= first
            outcome = _rounds(workers, plan, phase, say)
            for worker, (times, rounds, about) in zip(workers, outcome, strict=True):
                results[worker.id][phase] = {"batch_size": batch_size, **about}
                samples[f"{worker.id}/{phase}/cpu"] = np.array(worker.cpu[-1 - int(rounds[-1]) :])
                if phase == "latency":
                    # Before the larger batch needs more.
                    results[worker.id] |= worker.ask(do="peak")
                samples[f"{worker.id}/{phase}"] = times
                samples[f"{worker.id}/{phase}/rounds"] = rounds


def _rounds(
    workers: list[_Worker], plan: dict[str, Any], phase: str, say: Say
) -> list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """For every worker: seconds of each call, the round of each, and how it went."""
    warm = _warm_up(workers, limit=min(2.0, plan["max_seconds"] / 2))
    blocks: list[list[np.ndarray]] = [[] for _ in workers]
    spent = [0.0 for _ in workers]
    while True:
        turn = len(blocks[0]) % len(workers)
        for position in [*range(turn, len(workers)), *range(turn)]:
            times = workers[position].block(BLOCK_SECONDS)
            blocks[position].append(times)
            spent[position] += float(times.sum())
        medians = [np.array([np.median(block) for block in mine]) for mine in blocks]
        widths = [_relative_width(values) for values in medians]
        narrow = [width < plan["interval"] for width in widths]
        say(
            {
                "phase": phase,
                "models": [worker.id for worker in workers],
                "spent": sum(spent),
                "width": max(widths) if max(widths) < float("inf") else None,
                "p50": [float(np.median(values)) for values in medians],
            }
        )
        if all(narrow) and min(spent) >= plan["min_seconds"]:
            break
        if max(spent) >= plan["max_seconds"]:
            break
    return [
        (
            np.concatenate(mine),
            np.repeat(np.arange(len(mine), dtype=np.int32), [len(block) for block in mine]),
            {
                "warmup": calls,
                "conclusive": bool(done),
                "steady": bool(settled and not _drifts(values, plan["interval"])),
            },
        )
        for mine, values, (calls, settled), done in zip(blocks, medians, warm, narrow, strict=True)
    ]


def _warm_up(workers: list[_Worker], limit: float) -> list[tuple[int, bool]]:
    """Blocks in turn until all are steady or `limit` seconds each: (calls, whether it was)."""
    medians: list[list[float]] = [[] for _ in workers]
    calls, spent = [0 for _ in workers], [0.0 for _ in workers]

    def steady(values: list[float]) -> bool:
        if len(values) < _STEADY_BLOCKS:
            return False
        last = values[-_STEADY_BLOCKS:]
        return max(last) - min(last) <= _STEADY_SHARE * float(np.median(last))

    while not all(map(steady, medians)) and max(spent) < limit:
        for position, worker in enumerate(workers):
            times = worker.block(BLOCK_SECONDS)
            medians[position].append(float(np.median(times)))
            calls[position] += len(times)
            spent[position] += float(times.sum())
    return [(count, steady(values)) for count, values in zip(calls, medians, strict=True)]


def _relative_width(medians: np.ndarray) -> float:
    interval = quantile_interval(medians, 0.5)
    return float("inf") if interval is None else (interval[1] - interval[0]) / np.median(medians)


def _drifts(medians: np.ndarray, interval: float) -> bool:
    """Whether the first and the last third differ by more than noise of the asked width allows."""
    third = len(medians) // 3
    if third < 2:
        return False
    first, last = np.median(medians[:third]), np.median(medians[-third:])
    return bool(abs(last - first) > max(_STEADY_SHARE, 2 * interval) * np.median(medians))


class _Worker:
    """The near end of a worker process."""

    def __init__(
        self, model: dict[str, Any], inputs: str, process: subprocess.Popen[str], log: Any
    ):
        self.id = model["id"]
        self.load = {key: model[key] for key in ("runtime", "path", "threads", "precision")}
        self.load["inputs"] = inputs
        self._process, self._log = process, log
        # CPU seconds of one call, by block.
        self.cpu: list[float] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises MeasureError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MeasureError(f"{self.id}: its process ended {self._end()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(f"{self.id}: {answer['error']}")
        return answer

    def block(self, seconds: float) -> np.ndarray:
        """Seconds of each call of one block."""
        answer = self.ask(do="block", seconds=seconds)
        self.cpu.append(answer["cpu"])
        return np.frombuffer(base64.b64decode(answer["samples"]), "<i8") / 1e9

    def _end(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or [""])[-1][:300]
        why = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        hint = " (out of memory?)" if code == -9 else ""
        return f"{why}{hint}{': ' if last else ''}{last}"


@contextlib.contextmanager
def _worker(model: dict[str, Any], inputs: str) -> Iterator[_Worker]:
    package = __name__.rpartition(".")[0]
    # Where this package was imported from, a folder or a zip file; and nothing from the user's folder.
    root = Path(__file__).parents[package.count(".") + 1]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", package, "worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
        try:
            yield _Worker(model, inputs, process, log)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """The end of its input ends a worker; one in the middle of a long inference is not waited for."""
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    process.kill()
    process.wait()
