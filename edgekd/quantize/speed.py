"""Speed-aware: layers whose quantization slows the target down are left alone, as measured there."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgekd.errors import StageError
from edgekd.profile.statistics import Samples, speedup
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS, by_hand, formats
from edgekd.progress import Task
from edgekd.quantize.backend import Quantized
from edgekd.quantize.sensitivity import SUFFIX
from edgekd.results import LayerSpeed

# So many files take turns at once: each is a process with a model in memory.
_AT_ONCE = 8
# Smaller gains are not worth a layer's size, nor certain.
_WORTH = 0.98


@dataclass(frozen=True)
class Place:
    """A target and the runtime of it that opens a format."""

    target: Target
    runtime: str


def place(targets: Sequence[Target], format: str) -> Place | None:
    """The first target that can be measured without somebody's help, and opens `format`."""
    for target in targets:
        if target.predicted or by_hand(target):
            continue
        opens = formats(target.transport)
        for runtime in target.runtimes:
            if format in opens.get(runtime, ()):
                return Place(target, runtime)
    return None


def in_turns(
    files: Mapping[str, tuple[Path, ...]],
    where: Place,
    inputs: np.ndarray,
    *,
    launches: int = 1,
    seconds: float = 0.3,
) -> dict[str, Samples]:
    """Latencies at batch 1 of `files` (name to its parts, the model first) that take turns there.

    Raises StageError when one cannot be measured.
    """
    target = where.target
    with TemporaryDirectory(prefix="edgekd-speed-") as name:
        folder = Path(name)
        np.save(folder / "inputs.npy", inputs[:1])
        plan: dict[str, Any] = {
            "models": [
                {
                    "id": f"{target.name}/{where.runtime}/{key}",
                    "runtime": where.runtime,
                    "path": str(parts[0].resolve()),
                    "parts": [str(part.resolve()) for part in parts],
                    "threads": target.threads,
                    "precision": target.precision,
                    "variant": "int8",
                }
                for key, parts in files.items()
            ],
            "inputs": str(folder / "inputs.npy"),
            "root": str(folder),
            "limits": None if target.limits is None else target.limits.for_device(),
            "phases": ["latency"],
            "batch_size": 1,
            "throughput_batch_size": 1,
            "interval": 0.02,
            "launches": launches,
            "min_seconds": seconds * launches,
            "max_seconds": 2 * seconds * launches,
            "operators": False,
        }
        TRANSPORTS.get(target.transport)().measure(target, plan, folder, lambda event: None)
        told = json.loads((folder / "result.json").read_text())["models"]
        found = {}
        with np.load(folder / "samples.npz", allow_pickle=False) as archive:
            for model in plan["models"]:
                id = model["id"]
                if "error" in told[id]:
                    raise StageError(str(told[id]["error"]), where=f"target {target.name}")
                key = f"{id}/latency"
                found[id.split("/", 2)[2]] = Samples(
                    archive[key], archive[f"{key}/rounds"], archive[f"{key}/launches"]
                )
    return found


def median(samples: Samples) -> float:
    """Of all calls, in seconds."""
    return float(np.median(samples.seconds))


def slow_layers(
    format: str,
    quantized: Quantized,
    where: Place,
    inputs: np.ndarray,
    *,
    seconds: float,
    task: Task,
) -> tuple[tuple[LayerSpeed, ...], tuple[str, ...]]:
    """What every layer's quantization costs in time; and the layers that no time was left for.

    A file with one layer in float32 takes turns with the file without any; what is faster by 2 % at
    least, by the whole of its 95 % interval, is a candidate. The candidates together are then
    measured again, in three launches, and left alone only where that is faster too: they share the
    conversions between float32 and INT8.
    """
    started = time.monotonic()
    found: list[LayerSpeed] = []
    rest = list(quantized.layers)
    with TemporaryDirectory(prefix="edgekd-layers-") as name:
        folder = Path(name)

        def write(key: str, float32: Collection[str]) -> tuple[Path, ...]:
            return quantized.write(folder / f"{key}{SUFFIX[format]}", float32)

        whole = write("whole", ())
        while rest and time.monotonic() - started < seconds:
            turn, rest = rest[: _AT_ONCE - 1], rest[_AT_ONCE - 1 :]
            files = {str(i): write(str(i), [layer]) for i, layer in enumerate(turn)}
            samples = in_turns({"whole": whole, **files}, where, inputs)
            for key, layer in enumerate(turn):
                ratio, interval = speedup(samples[str(key)], samples["whole"])
                slow = interval[1] < _WORTH
                found.append(
                    LayerSpeed(layer=layer, ratio=ratio, interval=interval, kept_float32=slow)
                )
                task.advance(layer=layer)
        candidates = [speed.layer for speed in found if speed.kept_float32]
        if candidates:
            together = {"whole": whole, "together": write("together", candidates)}
            samples = in_turns(together, where, inputs, launches=3)
            _, (_, high) = speedup(samples["together"], samples["whole"])
            if high >= 1:
                found = [speed.model_copy(update={"kept_float32": False}) for speed in found]
    return tuple(found), tuple(rest)
