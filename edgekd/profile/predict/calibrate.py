"""Measure the suite on a device, once, for a cost model of it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.artifacts import read_json, sha256_json, write_json
from edgekd.errors import StageError, UsageError
from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.parcel import runner_name
from edgekd.profile.predict.records import Calibration, Observation, TimedStep
from edgekd.profile.predict.steps import executed_steps
from edgekd.profile.predict.suite import SIZE, suite_network
from edgekd.profile.statistics import block_medians
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS
from edgekd.progress import Progress

# Long enough for a median on a quiet machine; a busy one needs longer.
PLAN: dict[str, Any] = {
    "batch_size": 1, "throughput_batch_size": 1, "phases": ["latency"], "interval": 0.03,
    "min_seconds": 0.3, "max_seconds": 1.5,
}  # fmt: skip
# How often a network is measured at most when others disturb it, and from which ratio on they do.
TURNS, _DISTURBED = 4, 1.04
_IDENTITY = ("cpu_model", "architecture", "isa", "usable_cores", "memory_bytes")


@dataclass(frozen=True)
class Files:
    """One network: the file to open by format, and the shape of an input without the batch."""

    name: str
    shape: tuple[int, ...]
    paths: dict[str, Path]


def calibrate(target: Target, *, cache: Path, progress: Progress, size: int = SIZE) -> Calibration:
    """Measure the first `size` networks of the suite on `target`.

    Every measured network is kept in `cache` at once, for the same device and versions only: what
    was interrupted goes on where it was. Raises StageError when the device cannot be measured.
    """
    identity = sha256_json([target.model_dump(mode="json"), _versions(target), runner_name()])[:16]
    folder = cache / f"{target.name}-{identity}"
    said: dict[int, dict[str, Any]] = {}
    for turn in range(TURNS):
        again = [i for i in range(size) if i not in said or _disturbed(said[i], turn)]
        name = f"calibrate {target.name}" + (f", disturbed ones again ({turn})" if turn else "")
        with progress.task(name, len(again)) as task:
            for index in again:
                said[index] = _kept(target, index, folder / f"{index:03d}.json", turn)
                task.advance(network=said[index]["observations"][0]["network"])
    last = said[size - 1]
    observations = [
        Observation.model_validate(o) for told in said.values() for o in told["observations"]
    ]
    return Calibration(
        target=target.name,
        threads=target.threads,
        precision=target.precision,
        versions=last["versions"],
        device={key: last["environment"].get(key) for key in _IDENTITY},
        rooflines=last["rooflines"],
        measured=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        observations=tuple(observations),
    )


def _kept(target: Target, index: int, path: Path, turn: int) -> dict[str, Any]:
    """What was said of a network, measured unless that was done in this turn or a later one."""
    before: dict[str, Any] | None = read_json(path) if path.is_file() else None
    if before is not None and (before["turns"] > turn or not _disturbed(before, turn)):
        return before
    with tempfile.TemporaryDirectory(prefix="edgekd-suite-") as name:
        told = measure(target, _written(index, Path(name)), operators=before is None)
    told = told | {"turns": turn + 1}
    if before is not None:
        told = calmer(before, told)
    write_json(path, told)
    return told


def _disturbed(told: dict[str, Any], turn: int) -> bool:
    return told["turns"] <= turn and any(told["disturbed"])


def calmer(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two measurements of one network as one: of each runtime what was less disturbed, the shorter.

    Two that agree within 2 % are no longer in doubt.
    """
    kept = dict(before, turns=after["turns"])
    pairs = list(zip(before["observations"], after["observations"], strict=True))
    kept["observations"] = [
        first | {"seconds": min(first["seconds"], second["seconds"])} for first, second in pairs
    ]
    kept["disturbed"] = [
        a and b and abs(math.log(first["seconds"] / second["seconds"])) > 0.02
        for a, b, (first, second) in zip(
            before["disturbed"], after["disturbed"], pairs, strict=True
        )
    ]
    return kept


def measure(target: Target, files: Files, *, operators: bool) -> dict[str, Any]:
    """Latency of one network in every runtime of the target, and of its operators.

    `observations`, `versions` (by runtime), `environment`, `rooflines` (by runtime). Raises StageError.
    """
    models = [
        {
            "id": f"{target.name}/{runtime}/{files.name}",
            "runtime": runtime,
            "path": str(path),
            "parts": [str(part) for part in _parts(path)],
            "threads": target.threads,
            "precision": target.precision,
        }
        for runtime in target.runtimes
        for format, path in files.paths.items()
        if format in RUNTIMES[runtime].formats
    ]
    with tempfile.TemporaryDirectory(prefix="edgekd-calibrate-") as name:
        folder = Path(name)
        example = np.random.default_rng(0).standard_normal((1, *files.shape), np.float32)
        np.save(folder / "inputs.npy", example)
        plan = {
            "models": models,
            "inputs": str(folder / "inputs.npy"),
            **PLAN,
            "operators": operators,
        }
        TRANSPORTS.get(target.transport)().measure(target, plan, folder, lambda event: None)
        result = read_json(folder / "result.json")
        with np.load(folder / "samples.npz", allow_pickle=False) as samples:
            return _said(target, files, models, result, dict(samples.items()))


def _said(
    target: Target,
    files: Files,
    models: list[dict[str, Any]],
    result: dict[str, Any],
    samples: dict[str, np.ndarray],
) -> dict[str, Any]:
    observations, disturbed, versions, rooflines = [], [], {}, {}
    try:
        for model in models:
            id, runtime = model["id"], model["runtime"]
            versions[runtime] = result["models"][id]["version"]
            told = result.get("operators", {}).get(id, {})
            if "rooflines" in result:
                rooflines[runtime] = result["rooflines"][f"{runtime}/{target.threads}"]
            steps = executed_steps(
                Path(model["path"]), runtime, (1, *files.shape),
                threads=target.threads, precision=target.precision,
            )  # fmt: skip
            seconds = {(o["name"], o["type"]): o["seconds"] for o in told.get("operators", ())}
            seconds_quiet, doubtful = quiet_seconds(
                samples[f"{id}/latency"],
                samples[f"{id}/latency/rounds"],
                samples.get(f"{id}/latency/cpu") if target.threads == 1 else None,
            )
            disturbed.append(doubtful)
            observation = Observation(
                network=files.name,
                runtime=runtime,
                seconds=seconds_quiet,
                steps=tuple(
                    TimedStep(**dict(step), seconds=seconds.get((step.name, step.type)))
                    for step in steps
                ),
            )
            observations.append(observation.model_dump(mode="json"))
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(
            f"the device's results cannot be read: {type(error).__name__}: {error}",
            where=f"target {target.name}",
        ) from None
    return {
        "observations": observations,
        "disturbed": disturbed,
        "versions": versions,
        "environment": result["environment"],
        "rooflines": rooflines,
    }


def quiet_seconds(
    seconds: np.ndarray, rounds: np.ndarray, cpu: np.ndarray | None
) -> tuple[float, bool]:
    """The median latency as far as others let it be seen, and whether they disturbed it.

    Of every block its median, or its CPU time for one call where that is known (one thread) and less:
    the difference is waiting for others. Of the blocks the first decile. They were disturbed where
    their median is more than 4 % above it.
    """
    blocks = np.array(list(block_medians(seconds, rounds).values()))
    if cpu is not None and len(cpu) == len(blocks):
        blocks = np.minimum(blocks, cpu)
    quiet = float(np.quantile(blocks, 0.1))
    return quiet, bool(np.median(blocks) > _DISTURBED * quiet)


def _written(index: int, folder: Path) -> Files:
    """A network of the suite as files of both formats."""
    import onnx
    import openvino

    network = suite_network(index)
    paths = {"onnx": folder / "model.onnx", "openvino": folder / "model.xml"}
    onnx.save(network.model, paths["onnx"])
    openvino.save_model(
        openvino.convert_model(paths["onnx"]), paths["openvino"], compress_to_fp16=False
    )
    return Files(network.name, network.shape, paths)


def _parts(path: Path) -> Iterable[Path]:
    from edgekd.export.parts import model_parts

    return model_parts(path.resolve())


def _versions(target: Target) -> dict[str, str]:
    return {runtime: RUNTIMES[runtime].session.version() for runtime in target.runtimes}


def default_cache() -> Path:
    """Where measured networks are kept until a calibration is complete."""
    import os

    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(root).expanduser() / "edgekd" / "calibration"
    except RuntimeError:
        raise UsageError("there is no home folder", fix="set XDG_CACHE_HOME") from None
