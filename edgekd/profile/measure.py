"""Profile exported files on targets: plan, measure on the device, turn samples into results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.artifacts import read_json
from edgekd.config.schema import Profile
from edgekd.errors import StageError, UsageError
from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.statistics import Samples, speedup, summarise
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS
from edgekd.progress import Progress
from edgekd.results import Comparison, ExportedFile, Measurement, Memory, ProfileReport


@dataclass(frozen=True)
class Entry:
    """One file in one runtime on one target; `id` names its samples."""

    id: str
    file: ExportedFile
    runtime: str
    target: Target


def profile(
    files: tuple[ExportedFile, ...],
    targets: list[Target],
    settings: Profile,
    example: np.ndarray,
    *,
    root: Path,
    progress: Progress,
) -> tuple[ProfileReport, dict[str, np.ndarray]]:
    """Measure `files` (paths below `root`) on every target, with `example` inputs (n, …) float32.

    Returns the report and all samples (seconds, and the round of each) by name.
    Raises UsageError when a target's runtimes open none of the files, StageError when a model
    cannot be measured.
    """
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    environment: dict[str, dict[str, object]] = {}
    warnings: list[str] = []
    samples: dict[str, np.ndarray] = {}
    for target in targets:
        entries = _entries(files, target)
        result, measured = _on_device(entries, target, settings, example, root, progress)
        environment[target.name] = result["environment"]
        warnings += [f"{target.name}: {text}" for text in result["warnings"]]
        samples |= measured
        here = [_measurement(entry, result["models"][entry.id], measured) for entry in entries]
        measurements += here
        warnings += [text for m in here for text in _doubts(m)]
        comparisons += _comparisons(here, measured)
        warnings += _slow_int8(here, measured)
    report = ProfileReport(
        measurements=tuple(measurements),
        comparisons=tuple(comparisons),
        environment=environment,
        warnings=tuple(warnings),
    )
    return report, samples


def _entries(files: tuple[ExportedFile, ...], target: Target) -> list[Entry]:
    entries = [
        Entry(f"{target.name}/{runtime}/{file.name}", file, runtime, target)
        for runtime in target.runtimes
        for file in files
        if file.format in RUNTIMES[runtime].formats
    ]
    if not entries:
        formats = sorted({file.format for file in files})
        raise UsageError(
            f"target {target.name!r} has the runtimes {', '.join(target.runtimes)}, which open none "
            f"of the exported formats ({', '.join(formats)})",
            where="export.formats",
        )
    return entries


def _on_device(
    entries: list[Entry],
    target: Target,
    settings: Profile,
    example: np.ndarray,
    root: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with tempfile.TemporaryDirectory(prefix="edgekd-profile-") as name:
        folder = Path(name)
        np.save(folder / "inputs.npy", example)
        plan = {
            "models": [
                {
                    "id": entry.id,
                    "runtime": entry.runtime,
                    "path": str((root / entry.file.path).resolve()),
                    "parts": [str((root / part).resolve()) for part in entry.file.files],
                    "threads": target.threads,
                    "precision": target.precision,
                }
                for entry in entries
            ],
            "inputs": str(folder / "inputs.npy"),
            **settings.model_dump(exclude={"targets"}),
        }
        total = 2 * len(entries) * settings.max_seconds
        with progress.task(f"profile {target.name}", total) as task:
            TRANSPORTS.get(target.transport)().measure(target, plan, folder, _teller(task.advance))
        try:
            with np.load(folder / "samples.npz", allow_pickle=False) as archive:
                samples = {key: archive[key] for key in archive.files}
            return read_json(folder / "result.json"), samples
        except (OSError, ValueError, UsageError) as error:
            raise StageError(
                f"the device's results cannot be read: {error}", where=f"target {target.name}"
            ) from None


def _teller(advance: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """Events to progress: seconds of measuring done, and how narrow the interval is by now."""
    spent: dict[tuple[str, ...], float] = {}

    def tell(event: dict[str, Any]) -> None:
        key = (event["phase"], *event["models"])
        amount = event["spent"] - spent.get(key, 0.0)
        spent[key] = event["spent"]
        width = event["width"]
        advance(
            amount,
            runtime=event["models"][0].split("/")[1],
            phase=event["phase"],
            interval=f"±{width / 2:.1%}" if width is not None else "…",
        )

    return tell


def _measurement(
    entry: Entry, result: dict[str, Any], samples: dict[str, np.ndarray]
) -> Measurement:
    latency, throughput = (
        summarise(
            _samples(samples, f"{entry.id}/{phase}"),
            batch_size=result[phase]["batch_size"],
            steady=result[phase]["steady"],
            key=f"{entry.id}/{phase}",
            kind=result[phase].get("kind", "call"),
        )
        for phase in ("latency", "throughput")
    )
    batch = throughput.batch_size
    low, high = throughput.p50_interval
    return Measurement(
        role=entry.file.role,
        format=entry.file.format,
        variant=entry.file.variant,
        runtime=entry.runtime,
        runtime_version=result["version"],
        target=entry.target.name,
        path=entry.file.path,
        precision=result["precision"],
        threads=entry.target.threads,
        provenance="measured",
        conclusive=result["latency"]["conclusive"] and result["throughput"]["conclusive"],
        latency=latency,
        throughput=batch / throughput.p50,
        throughput_interval=(batch / high, batch / low),
        throughput_latency=throughput,
        memory=Memory(
            peak_rss=result["peak_rss"],
            baseline_rss=result["baseline_rss"],
            model=max(0, result["peak_rss"] - result["baseline_rss"]),
        ),
        size=entry.file.size,
        load=result["load"],
        first=result["first"],
        warmup=result["latency"]["warmup"],
    )


def _samples(samples: dict[str, np.ndarray], key: str) -> Samples:
    return Samples(samples[key], samples[f"{key}/rounds"])


def _doubts(m: Measurement) -> list[str]:
    """What of this measurement is not to be relied on."""
    name = f"{m.target}: {m.role} ({m.variant}) in {m.runtime}"
    doubts = []
    if not m.conclusive:
        doubts.append(f"{name}: the median's interval stayed too wide (profile.max_seconds)")
    if not m.latency.steady:
        doubts.append(f"{name}: the latency was not steady")
    return doubts


def _slow_int8(measurements: list[Measurement], samples: dict[str, np.ndarray]) -> list[str]:
    """INT8 files that are not faster than the same model in float32: small models often are not."""
    found = []
    for int8 in (m for m in measurements if m.variant == "int8"):
        for f32 in measurements:
            if (f32.role, f32.variant, f32.runtime) != (int8.role, "f32", int8.runtime):
                continue
            ratio, (_, high) = speedup(
                _samples(samples, f32.latency.samples), _samples(samples, int8.latency.samples)
            )
            if high < 1:
                found.append(
                    f"{int8.target}: INT8 does not pay in {int8.runtime}: "
                    f"it takes {1 / ratio:.2f} times as long as float32"
                )
    return found


def _comparisons(
    measurements: list[Measurement], samples: dict[str, np.ndarray]
) -> list[Comparison]:
    comparisons = []
    for student in (m for m in measurements if m.role == "student"):
        for teacher in measurements:
            same_place = (teacher.runtime, teacher.format) == (student.runtime, student.format)
            if (teacher.role, teacher.variant) != ("teacher", "f32") or not same_place:
                continue
            ratio, interval = speedup(
                _samples(samples, teacher.latency.samples),
                _samples(samples, student.latency.samples),
            )
            comparisons.append(
                Comparison(
                    target=student.target,
                    runtime=student.runtime,
                    variant=student.variant,
                    speedup=ratio,
                    speedup_interval=interval,
                    memory_ratio=max(1, teacher.memory.model) / max(1, student.memory.model),
                    compression=teacher.size / student.size,
                )
            )
    return comparisons
