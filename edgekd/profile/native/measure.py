"""Measure models with a native tool that is started anew for every block of calls.

As on a device with Python (`device/measure.py`), but the process of a block is the tool's own:
1. one run of a model of one node, and one of each model, with their peak memory: the first is the
   baseline, the others are warm-up and tell how many calls make a block;
2. rounds: every model runs one block, in rotated order, so that drift hits all;
3. the end: when the 95 % interval of every median, from the blocks' medians, is narrower than asked
   and the least time was spent; or when the time is up, which makes it inconclusive.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from edgekd.errors import StageError
from edgekd.profile.device.measure import drifts, relative_width
from edgekd.profile.native.tool import Figures, Job, Tool
from edgekd.profile.parcel import content_path

BLOCK_SECONDS = 0.3
_MOST_CALLS, _LEAST_CALLS, _PROBE_CALLS = 20_000, 5, 10
_MOST_REPORT = 4 << 20
Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Finished:
    """A process on the device: what it printed, and its peak resident memory if that was asked."""

    printed: str
    peak: int | None


class Device(Protocol):
    """Where native tools run. Paths are relative to edgekd's folder there."""

    def send(self, files: dict[str, Path]) -> None:
        """Put files there by path; a path that is there already is what would be sent."""

    def place(self, source: str, destination: str) -> None:
        """Copy a file there."""

    def run(self, arguments: list[str], *, peak: bool = False) -> Finished:
        """Run the tool in the folder. Raises StageError with its last words when it fails."""

    def take(self, path: str, most: int) -> bytes:
        """Read a file and delete it there. Raises StageError above `most` bytes."""


@dataclass
class _Model:
    """One model of the plan on the device, and what its runs gave."""

    id: str
    job: Job
    blocks: list[Figures]


def measure(
    device: Device,
    tool: Tool,
    plan: dict[str, Any],
    folder: Path,
    job_folder: str,
    environment: dict[str, Any],
    say: Say,
) -> None:
    """Do what `plan` says (see `device/measure.py`); `result.json` and `samples.npz` in `folder`.

    Raises StageError when the tool fails, or prints what it should not.
    """
    inputs = np.load(plan["inputs"], allow_pickle=False)
    baseline = _baseline(device, tool, job_folder)
    models = [_model(device, tool, model, job_folder) for model in plan["models"]]
    results: dict[str, Any] = {model.id: {"baseline_rss": baseline} for model in models}
    samples: dict[str, np.ndarray] = {}
    batch_sizes = {"latency": plan["batch_size"], "throughput": plan["throughput_batch_size"]}
    for phase in plan.get("phases", ("latency", "throughput")):
        batch = np.resize(inputs, (batch_sizes[phase], *inputs.shape[1:]))
        for model in models:
            about = _prepare(device, tool, model, batch)
            if phase == "latency":
                results[model.id] |= about
        for model, settled in zip(
            models, _rounds(device, tool, models, plan, phase, say), strict=True
        ):
            times = [block.samples for block in model.blocks]
            results[model.id][phase] = {
                "batch_size": batch_sizes[phase], "kind": tool.kind, **settled,
                "warmup": model.job.calls,
            }  # fmt: skip
            samples[f"{model.id}/{phase}"] = np.concatenate(times)
            # Every run is a process of its own: a round is a launch.
            rounds = np.arange(len(times), dtype=np.int32)
            for each in ("rounds", "launches"):
                samples[f"{model.id}/{phase}/{each}"] = np.repeat(rounds, [len(t) for t in times])
    result = {"models": results, "environment": environment, "warnings": _caveats(tool)}
    np.savez(folder / "samples.npz", **samples)  # type: ignore[arg-type]
    (folder / "result.json").write_text(json.dumps(result, indent=2))


def _caveats(tool: Tool) -> list[str]:
    if tool.kind == "call":
        return []
    return [
        "the native tool tells no single latencies: each sample is the median of a run of calls; "
        "p90, p99, least and greatest are those of medians"
    ]


def _baseline(device: Device, tool: Tool, job_folder: str) -> int:
    """Peak memory of the tool with a model of one node."""
    with tempfile.TemporaryDirectory(prefix="edgekd-native-") as name:
        files = tool.one_node(Path(name))
        paths = _send(device, files)
        _send_beside(device, tool, paths[0], np.zeros(1, np.float32))
    job = Job(paths[0], job_folder, (1,), False, 1, "f32", calls=_MOST_CALLS)
    return _run(device, tool, job, peak=True)[1]


def _model(device: Device, tool: Tool, model: dict[str, Any], job_folder: str) -> _Model:
    path = Path(model["path"])
    precision, dynamic = tool.describe(path)
    if precision and precision != model["precision"]:
        raise StageError(
            f"{model['id']}: {tool.runtime} executes this file in {precision}, "
            f"not in {model['precision']}"
        )
    others = [Path(part) for part in model["parts"] if Path(part) != path]
    sent = _send(device, [path, *others])
    job = Job(sent[0], job_folder, (), dynamic, model["threads"], model["precision"], _PROBE_CALLS)
    return _Model(model["id"], job, [])


def _prepare(device: Device, tool: Tool, model: _Model, batch: np.ndarray) -> dict[str, Any]:
    """Give the model its inputs, find how many calls make a block, and warm up with one block."""
    _send_beside(device, tool, model.job.model, batch)
    model.job = replace(model.job, shape=batch.shape, calls=_PROBE_CALLS)
    model.blocks = []
    probe, _ = _run(device, tool, model.job)
    if probe.precision != model.job.precision:
        raise StageError(
            f"{model.id}: {tool.runtime} executes this file in {probe.precision}, "
            f"not in {model.job.precision}"
        )
    model.job = replace(model.job, calls=_block_calls(probe))
    warm, peak = _run(device, tool, model.job, peak=True)
    model.job = replace(model.job, calls=_block_calls(warm))
    return {
        "peak_rss": peak, "load": probe.load, "first": probe.first,
        "precision": probe.precision, "version": probe.version,
    }  # fmt: skip


def _block_calls(figures: Figures) -> int:
    """How many calls take as long as a block should."""
    calls = round(BLOCK_SECONDS / max(figures.median, 1e-9))
    return min(max(calls, _LEAST_CALLS), _MOST_CALLS)


def _rounds(
    device: Device,
    tool: Tool,
    models: list[_Model],
    plan: dict[str, Any],
    phase: str,
    say: Say,
) -> list[dict[str, bool]]:
    """Blocks in turn until it is enough; for every model whether it was conclusive and steady."""
    while True:
        turn = len(models[0].blocks) % len(models)
        for model in [*models[turn:], *models[:turn]]:
            model.blocks.append(_run(device, tool, model.job)[0])
        medians = [np.array([block.median for block in model.blocks]) for model in models]
        spent = [float(m.sum()) * model.job.calls for m, model in zip(medians, models, strict=True)]
        widths = [relative_width(values) for values in medians]
        narrow = [width < plan["interval"] for width in widths]
        say(
            {
                "phase": phase,
                "models": [model.id for model in models],
                "spent": sum(spent),
                "width": max(widths) if max(widths) < float("inf") else None,
                "p50": [float(np.median(values)) for values in medians],
            }
        )
        if (all(narrow) and min(spent) >= plan["min_seconds"]) or max(spent) >= plan["max_seconds"]:
            break
    return [
        {"conclusive": bool(done), "steady": not drifts(values, plan["interval"])}
        for done, values in zip(narrow, medians, strict=True)
    ]


def _run(device: Device, tool: Tool, job: Job, *, peak: bool = False) -> tuple[Figures, int]:
    """One run of the tool and its peak memory (0 if not asked)."""
    finished = device.run(tool.arguments(job), peak=peak)
    report = device.take(f"{job.folder}/{tool.report}", _MOST_REPORT)
    figures = tool.figures(job, finished.printed, report)
    if not peak:
        return figures, 0
    if not finished.peak:
        raise StageError("the device does not tell a process's memory (/proc/PID/status)")
    return figures, finished.peak


def _send(device: Device, files: list[Path]) -> list[str]:
    """Send files that belong together; their paths on the device."""
    paths = content_path(files)
    device.send(dict(zip(paths, files, strict=True)))
    return paths


def _send_beside(device: Device, tool: Tool, model: str, inputs: np.ndarray) -> None:
    """Put the tool's inputs beside the model."""
    with tempfile.TemporaryDirectory(prefix="edgekd-native-") as name:
        for relative, content in tool.beside(inputs).items():
            here = Path(name) / PurePosixPath(relative).name
            here.write_bytes(content)
            [sent] = _send(device, [here])
            device.place(sent, str(PurePosixPath(model).parent / relative))
