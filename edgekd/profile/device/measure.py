"""Measure models against each other: fresh processes that take turns in short blocks, several times.

The procedure, for the models of one runtime. A launch:
1. each is loaded in a process of its own; a process that is not its turn waits and uses no CPU;
2. warm-up: blocks in turn until the medians of a model's last four blocks agree within 5 %;
3. rounds: every model runs one block, in rotated order (A B, B A, …), so that drift hits all;
4. until its share of the least time was spent with every model. Where there is to be a single launch:
   also until the 95 % interval of the median, from the medians of the blocks as independent
   observations (order statistics), is narrower than asked; or the time is up;
5. the same with a larger batch, for the throughput (and with 8, for MLPerf's MultiStream).

Two processes of the very same file can differ by a few per cent for as long as they live (where their
memory happens to lie). What is said about a file therefore comes from several launches, each of which is
one observation: as many as asked, then more until the 95 % interval of the mean over launches is narrower
than asked, or until the time is up, which makes it inconclusive.

Last, where the plan asks for it, when all of this is over and in processes of their own: the time of every
operator, and what the device can do at most. These may fail; the rest stands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import energy
from .environment import complaints, describe, noise, state, throttling
from .intervals import launches_interval, quantile_interval
from .limits import Confinement, Confines, LimitError, confines

Say = Callable[[dict[str, Any]], None]
BLOCK_SECONDS = 0.03
STEADY_BLOCKS, STEADY_SHARE, WARM_UP_SECONDS = 4, 0.05, 2.0
_OPERATOR_SECONDS = 0.5
# What Python, C++, the loader and the runtimes say when they get no memory (or no stack for a thread).
_NO_MEMORY = (
    "memoryerror", "bad_alloc", "allocat", "out of memory", "failed to map segment",
    "resource temporarily unavailable",
)  # fmt: skip


class MeasureError(Exception):
    """A model could not be measured; the text says which and why, `model` is its id."""

    def __init__(self, text: str, model: str) -> None:
        super().__init__(text)
        self.model = model


class TooLittleMemory(MeasureError):
    """The model `id` needs more memory than its limit allows."""

    def __init__(self, model: str, text: str) -> None:
        super().__init__(f"{model}: {text}", model)
        self.text = text


@dataclass
class _Phase:
    """What one model did in one phase of one launch."""

    batch_size: int
    times: np.ndarray
    rounds: np.ndarray
    warmup: int
    conclusive: bool
    steady: bool
    waited: float | None
    joules: float | None
    cpu: np.ndarray

    @property
    def p50(self) -> float:
        return float(np.median(self.times))


@dataclass
class _Launch:
    """What one process of a model told: its start, and its phases by name."""

    start: dict[str, Any]
    phases: dict[str, _Phase]


def measure(plan: dict[str, Any], folder: Path, say: Say) -> None:
    """Do what `plan` says (see `collect`) and write `result.json` and `samples.npz` to `folder`.

    Raises MeasureError.
    """
    result, samples = collect(plan, say)
    with (folder / "samples.npz").open("wb") as file:
        np.savez(file, **samples)  # type: ignore[arg-type]
    (folder / "result.json").write_text(json.dumps(result, indent=2))


def collect(plan: dict[str, Any], say: Say) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Do what `plan` says: the result, and all samples (seconds, and the round of each) by name.

    `plan`: `models` (list of id, runtime, path, threads, precision; `parts`, all files that the
    model consists of, is for who sends it), `inputs` (an .npy file),
    `batch_size`, `throughput_batch_size`, `interval`, `min_seconds`, `max_seconds`; `launches`
    (default 1: then the interval is that of one process); `phases` (default latency and
    throughput; multistream); `min_calls` by phase; `limits` (see `limits.py`); `operators` (default
    false). `root` is for transports that keep something in the run.
    A model that needs more memory than its limit has `error` alone in the results.
    Raises MeasureError.
    """
    results: dict[str, Any] = {}
    samples: dict[str, np.ndarray] = {}
    try:
        with confines(plan.get("limits")) as confined:
            environment = describe()
            own = _own_seconds()
            for runtime in dict.fromkeys(model["runtime"] for model in plan["models"]):
                models = [model for model in plan["models"] if model["runtime"] == runtime]
                _measure_together(models, plan, confined, say, results, samples)
            after, own = state(), _own_seconds() - own
            measured = [model for model in plan["models"] if "error" not in results[model["id"]]]
            extra = _anatomy(measured, plan, confined, say) if plan.get("operators") else {}
    except LimitError as error:
        raise MeasureError(str(error), "") from None
    threads = max((model["threads"] for model in plan["models"]), default=1)
    result = {
        "models": results,
        **extra,
        "environment": {
            **environment,
            "state_after": after,
            "runtimes": {model["runtime"]: results[model["id"]].pop("build") for model in
                         plan["models"] if "build" in results[model["id"]]},
            "emulated": "; ".join(confined.reasons) or environment["emulated"],
        },
        "warnings": complaints(environment["state"], after, environment["cores"], threads, own),
    }  # fmt: skip
    return result, samples


def outputs(
    model: dict[str, Any], inputs: str, batch_size: int, told: Callable[[int], None]
) -> np.ndarray:
    """What a model of a plan answers to each of `inputs` (an .npy file), in a process of its own.

    `told` gets the number of samples that are done. Raises MeasureError.
    """
    chunks: list[np.ndarray] = []
    count = len(np.load(inputs, mmap_mode="r", allow_pickle=False))
    with _worker(model, Confines()) as worker:
        worker.ask(do="start", inputs=inputs, **worker.start)
        worker.ask(do="load", **worker.load)
        for first in range(0, count, batch_size):
            answer = worker.ask(do="outputs", first=first, count=batch_size)
            data = np.frombuffer(base64.b64decode(answer["outputs"]), "<f4")
            chunks.append(data.reshape(answer["shape"]))
            told(min(first + batch_size, count))
    return np.concatenate(chunks)


def _anatomy(
    models: list[dict[str, Any]], plan: dict[str, Any], confined: Confines, say: Say
) -> dict[str, Any]:
    """`operators` by model and `rooflines` by "runtime/threads"; {"error": …} for what failed."""
    seconds = min(_OPERATOR_SECONDS, plan["max_seconds"])
    operators, rooflines = {}, {}
    for model in models:
        operators[model["id"]] = _try(
            model, plan, confined, do="operators", batch_size=plan["batch_size"], seconds=seconds
        )
        name = f"{model['runtime']}/{model['threads']}"
        if name not in rooflines:
            precisions = sorted({model["precision"], "int8"})
            rooflines[name] = _try(model, plan, confined, do="roofline", precisions=precisions)
        say({"phase": "operators", "models": [model["id"]], "spent": seconds, "width": None})
    return {"operators": operators, "rooflines": rooflines}


def _try(
    model: dict[str, Any], plan: dict[str, Any], confined: Confines, do: str, **request: Any
) -> dict[str, Any]:
    """One request to a process of its own."""
    try:
        with _worker(model, confined) as worker:
            worker.ask(do="start", inputs=plan["inputs"], **worker.start)
            about = (
                worker.load if do == "operators" else {k: model[k] for k in ("runtime", "threads")}
            )
            return worker.ask(do=do, **about, **request)
    except MeasureError as error:
        return {"error": str(error)}


def _own_seconds() -> float:
    """CPU time of this process and of the workers that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _measure_together(
    models: list[dict[str, Any]],
    plan: dict[str, Any],
    confined: Confines,
    say: Say,
    results: dict[str, Any],
    samples: dict[str, np.ndarray],
) -> None:
    """Launches of all models, until there are enough or the time is up."""
    wanted, phases = plan.get("launches", 1), plan.get("phases", ("latency", "throughput"))
    started, before = time.monotonic(), state()
    most = plan["max_seconds"] * len(models) * len(phases)
    launches: dict[str, list[_Launch]] = {model["id"]: [] for model in models}
    done = 0
    while models:
        # Another is loaded first, and begins, the next time.
        turn = done % len(models)
        try:
            told = _launch(models[turn:] + models[:turn], plan, confined, say)
        except TooLittleMemory as error:
            results[error.model] = {"error": error.text}
            models = [model for model in models if model["id"] != error.model]
            continue
        done += 1
        for id, launch in told.items():
            launches[id].append(launch)
        widths = [_width(launches[id], phase) for id in told for phase in phases]
        spent = time.monotonic() - started
        say({"phase": "launches", "models": list(told), "spent": spent, "launches": done,
             "width": max(widths) if max(widths) < float("inf") else None})  # fmt: skip
        if done >= wanted and (wanted == 1 or max(widths) < plan["interval"]):
            break
        if spent + spent / done > most:
            break
    slowed = throttling(before, state())
    quota = (plan.get("limits") or {}).get("cpu_quota")
    for model in models:
        id = model["id"]
        results[id] = _summary(launches[id], plan, wanted, slowed, quota is not None)
        for phase in phases:
            samples |= _samples(f"{id}/{phase}", [launch.phases[phase] for launch in launches[id]])


def _width(launches: list[_Launch], phase: str) -> float:
    """Of the 95 % interval of the mean over launches of the median, as a share of it."""
    if len(launches) < 2:
        return float("inf")
    medians = np.array([launch.phases[phase].p50 for launch in launches])
    low, high = launches_interval(medians)
    return (high - low) / float(np.median(medians))


def _summary(
    launches: list[_Launch], plan: dict[str, Any], wanted: int, slowed: list[str], quota: bool
) -> dict[str, Any]:
    """What `result.json` says of one model: the medians over launches, and each one's start."""
    first = launches[0].start
    told: dict[str, Any] = {key: first[key] for key in ("version", "build", "precision")}
    figures = ("load", "first", "baseline_rss", "python_rss", "peak_rss", "private_dirty")
    for key in figures:
        values = [launch.start[key] for launch in launches if launch.start[key] is not None]
        middle = float(np.median(values)) if values else None
        told[key] = middle if middle is None or key in ("load", "first") else round(middle)
    told["cold"] = {
        key: [launch.start[key] for launch in launches]
        for key in ("runtime_seconds", "load", "compile", "first")
    }
    told["launches"] = len(launches)
    told["energy"] = [_per_sample(launch.phases.get("latency")) for launch in launches]
    # A process that may not run all the time waits because it is told to.
    waits = [phase.waited for launch in launches for phase in launch.phases.values()]
    seconds = sum(float(p.times.sum()) for launch in launches for p in launch.phases.values())
    waited = sum(wait or 0.0 for wait in waits)
    told["noise"] = slowed + ([] if quota else noise(waited, seconds))
    for name in launches[0].phases:
        phases = [launch.phases[name] for launch in launches]
        narrow = all(phase.conclusive for phase in phases)
        if wanted > 1:
            narrow = len(launches) >= wanted and _width(launches, name) < plan["interval"]
        told[name] = {
            "batch_size": phases[0].batch_size,
            "warmup": sum(phase.warmup for phase in phases),
            "conclusive": bool(narrow),
            # One disturbed launch of several is in the interval already.
            "steady": 2 * sum(phase.steady for phase in phases) > len(phases),
        }
    return told


def _per_sample(phase: _Phase | None) -> float | None:
    """Joules of one inference of one sample."""
    if phase is None or phase.joules is None:
        return None
    return phase.joules / (len(phase.times) * phase.batch_size)


def _samples(name: str, phases: list[_Phase]) -> dict[str, np.ndarray]:
    """Seconds of every call, and the round and the launch that each was made in, from 0."""
    counts = [len(phase.times) for phase in phases]
    rounds = np.cumsum([0, *(int(phase.rounds[-1]) + 1 for phase in phases)])
    return {
        name: np.concatenate([phase.times for phase in phases]),
        f"{name}/rounds": np.concatenate(
            [phase.rounds + start for phase, start in zip(phases, rounds)]
        ).astype(np.int32),
        f"{name}/cpu": np.concatenate([phase.cpu for phase in phases]),
        f"{name}/launches": np.repeat(np.arange(len(phases), dtype=np.int32), counts),
    }


def _launch(
    models: list[dict[str, Any]], plan: dict[str, Any], confined: Confines, say: Say
) -> dict[str, _Launch]:
    """One fresh process of each model, through all phases."""
    batch_sizes = {
        "latency": plan["batch_size"],
        "throughput": plan["throughput_batch_size"],
        "multistream": 8,
    }
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(model, confined)) for model in models]
        told = {
            w.id: _Launch(w.ask(do="start", inputs=plan["inputs"], **w.start), {}) for w in workers
        }
        for worker in workers:
            told[worker.id].start |= worker.ask(do="load", **worker.load)
        for phase in plan.get("phases", ("latency", "throughput")):
            for worker in workers:
                first = worker.ask(do="bind", batch_size=batch_sizes[phase])
                if "first" not in told[worker.id].start:
                    # Before a larger batch needs more.
                    told[worker.id].start |= first | worker.ask(do="memory")
            outcomes = _rounds(workers, plan, phase, batch_sizes[phase], say)
            for worker, outcome in zip(workers, outcomes):
                told[worker.id].phases[phase] = outcome
    return told


def _rounds(
    workers: list[_Worker], plan: dict[str, Any], phase: str, batch_size: int, say: Say
) -> list[_Phase]:
    """The blocks of one phase of one launch."""
    wanted = plan.get("launches", 1)
    least, most = plan["min_seconds"] / wanted, plan["max_seconds"] / wanted
    calls = plan.get("min_calls", {}).get(phase, 0) / wanted
    warm = _warm_up(workers, limit=min(WARM_UP_SECONDS, most / 4))
    blocks: list[list[np.ndarray]] = [[] for _ in workers]
    spent = [0.0 for _ in workers]
    for worker in workers:
        worker.waited = worker.joules = 0.0
        worker.cpu = []
    while True:
        turn = len(blocks[0]) % len(workers)
        for position in [*range(turn, len(workers)), *range(turn)]:
            times = workers[position].block(BLOCK_SECONDS)
            blocks[position].append(times)
            spent[position] += float(times.sum())
        medians = [np.array([np.median(block) for block in mine]) for mine in blocks]
        widths = [relative_width(values) for values in medians]
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
        enough = min(sum(map(len, mine)) for mine in blocks) >= calls
        if (wanted > 1 or all(narrow)) and enough and min(spent) >= least:
            break
        if max(spent) >= most:
            break
    return [
        _Phase(
            batch_size,
            np.concatenate(mine),
            np.repeat(np.arange(len(mine), dtype=np.int32), [len(block) for block in mine]),
            warmup,
            bool(done),
            bool(settled and not drifts(values, plan["interval"])),
            worker.waited,
            worker.joules,
            np.array(worker.cpu),
        )
        for worker, mine, values, (warmup, settled), done in zip(
            workers, blocks, medians, warm, narrow
        )
    ]


def _warm_up(workers: list[_Worker], limit: float) -> list[tuple[int, bool]]:
    """Blocks in turn until all are steady or `limit` seconds each: (calls, whether it was)."""
    medians: list[list[float]] = [[] for _ in workers]
    calls, spent = [0 for _ in workers], [0.0 for _ in workers]

    def steady(values: list[float]) -> bool:
        if len(values) < STEADY_BLOCKS:
            return False
        last = values[-STEADY_BLOCKS:]
        return max(last) - min(last) <= STEADY_SHARE * float(np.median(last))

    while not all(map(steady, medians)) and max(spent) < limit:
        for position, worker in enumerate(workers):
            times = worker.block(BLOCK_SECONDS)
            medians[position].append(float(np.median(times)))
            calls[position] += len(times)
            spent[position] += float(times.sum())
    return [(count, steady(values)) for count, values in zip(calls, medians)]


def relative_width(medians: np.ndarray) -> float:
    """Width of the 95 % interval of the blocks' median, as a share of it."""
    interval = quantile_interval(medians, 0.5)
    return float("inf") if interval is None else (interval[1] - interval[0]) / np.median(medians)


def drifts(medians: np.ndarray, interval: float) -> bool:
    """Whether the first and the last third differ by more than noise of the asked width allows."""
    third = len(medians) // 3
    if third < 2:
        return False
    first, last = np.median(medians[:third]), np.median(medians[-third:])
    return bool(abs(last - first) > max(STEADY_SHARE, 2 * interval) * np.median(medians))


class _Worker:
    """The near end of a worker process.

    `waited` is how long its blocks had to wait for a core, `joules` what the processor spent in them,
    `cpu` the CPU seconds of one call by block.
    """

    def __init__(
        self,
        model: dict[str, Any],
        process: subprocess.Popen[str],
        log: Any,
        confinement: Confinement,
        memory: int | None,
    ) -> None:
        self.id = model["id"]
        self.start = {
            "runtime": model["runtime"], "groups": confinement.groups, "data": confinement.data,
        }  # fmt: skip
        self.load = {key: model[key] for key in ("runtime", "path", "threads", "precision")}
        self.waited = 0.0
        self.joules: float | None = 0.0
        self._process, self._log = process, log
        self._confinement, self._memory = confinement, memory
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
            raise self._error(f"its process ended {self._end()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._error(answer["error"])
        return answer

    def _error(self, text: str) -> MeasureError:
        """What went wrong; under a memory limit, whether it was that."""
        starved = self._confinement.killed() or any(words in text.lower() for words in _NO_MEMORY)
        if self._memory is not None and starved:
            return TooLittleMemory(self.id, f"needs more than {self._memory / 2**20:g} MiB")
        return MeasureError(f"{self.id}: {text}", self.id)

    def block(self, seconds: float) -> np.ndarray:
        """Seconds of each call of one block."""
        before = energy.counters()
        answer = self.ask(do="block", seconds=seconds)
        spent = energy.joules(before, energy.counters())
        self.joules = None if spent is None or self.joules is None else self.joules + spent
        self.waited += answer["waited"] or 0.0
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
def _worker(model: dict[str, Any], confined: Confines) -> Iterator[_Worker]:
    package = __name__.rpartition(".")[0]
    # Where this package was imported from, a folder or a zip file; and nothing from the user's folder.
    root = Path(__file__).parents[package.count(".") + 1]
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
    with (
        confined.of_a_model() as confinement,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", package, "worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
        try:
            yield _Worker(model, process, log, confinement, confined.memory)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """The end of its input ends a worker; one in the middle of a long inference is not waited for."""
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    process.kill()
    process.wait()
