"""Profile exported files on targets: plan, measure on the device, turn samples into results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.artifacts import read_json
from edgekd.config.schema import Profile
from edgekd.errors import StageError, UsageError
from edgekd.profile.device.intervals import launches_interval
from edgekd.profile.operators import Said, operators_report
from edgekd.profile.sizes import Sizes, file_sizes
from edgekd.profile.statistics import Samples, scenarios, speedup, summarise
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS, formats
from edgekd.progress import Progress
from edgekd.results import (
    QUANTIZED,
    ColdStart,
    Comparison,
    Energy,
    ExportedFile,
    Measurement,
    Memory,
    OperatorsReport,
    ProfileReport,
    Provenance,
    Repeated,
)

# Loadgen's early stopping needs so many queries for a 99th percentile.
_MULTISTREAM = {
    "phases": ["latency", "throughput", "multistream"],
    "min_calls": {"multistream": 662},
}


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
) -> tuple[ProfileReport, dict[str, np.ndarray], OperatorsReport | None]:
    """Measure `files` (paths below `root`) on every target, with `example` inputs (n, …) float32.

    Returns the report, all samples (seconds, and the round of each) by name, and where the time
    goes if the settings ask for it.
    Raises UsageError when a target's runtimes open none of the files, StageError when a model
    cannot be measured.
    """
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    environment: dict[str, dict[str, object]] = {}
    warnings: list[str] = []
    samples: dict[str, np.ndarray] = {}
    said: list[Said] = []
    found = {
        target.name: _on_device(
            list_entries(files, target), target, settings, example, root, progress
        )
        # What comes from elsewhere first: where it is missing, nothing is measured in vain.
        for target in sorted(targets, key=lambda target: target.transport != "bundle")
    }
    sizes = {file.path: file_sizes(file, root) for file in files}
    for target in targets:
        result, measured = found[target.name]
        if target.emulated and not result["environment"].get("emulated"):
            result["environment"]["emulated"] = "so says the target's descriptor"
        environment[target.name] = result["environment"]
        failed = result.get("failed", {})
        warnings += [f"{name} does not run there: {reason}" for name, reason in failed.items()]
        warnings += [f"{target.name}: {text}" for text in result["warnings"]]
        samples |= measured
        _check_limits(target, result["environment"])
        entries = [entry for entry in list_entries(files, target) if entry.id not in failed]
        told = {entry.id: result["models"][entry.id] for entry in entries}
        warnings += _too_large(entries, told)
        entries = [entry for entry in entries if "error" not in told[entry.id]]
        provenance = _provenance(result["environment"])
        here = [
            _measurement(entry, told[entry.id], measured, sizes[entry.file.path], provenance)
            for entry in entries
        ]
        measurements += here
        pairs = [(entry.file, entry.runtime) for entry in entries]
        said.append((target.name, pairs, result, provenance))
        warnings += [text for m in here for text in _doubts(m)]
        comparisons += _comparisons(here, measured)
        warnings += _slow_quantized(here, measured)
    report = ProfileReport(
        measurements=tuple(measurements),
        comparisons=tuple(comparisons),
        environment=environment,
        warnings=tuple(warnings),
    )
    operators = None
    if settings.operators:
        operators = operators_report(files, said, root, settings.batch_size, example.shape[1:])
    return report, samples, operators


def list_entries(files: tuple[ExportedFile, ...], target: Target) -> list[Entry]:
    """What is measured on a target. Raises UsageError when its runtimes open none of the files."""
    opens = formats(target.transport)
    found = [
        Entry(f"{target.name}/{runtime}/{file.name}", file, runtime, target)
        for runtime in target.runtimes
        for file in files
        if file.format in opens.get(runtime, ())
    ]
    if not found:
        exported = sorted({file.format for file in files})
        raise UsageError(
            f"target {target.name!r} has the runtimes {', '.join(target.runtimes)}, which open none "
            f"of the exported formats ({', '.join(exported)})",
            where="export.formats",
        )
    return found


def make_plan(entries: list[Entry], settings: Profile, inputs: Path, root: Path) -> dict[str, Any]:
    """What a transport is given (see `device/measure.py`); `inputs` is an .npy file."""
    return {
        "models": [
            {
                "id": entry.id,
                "runtime": entry.runtime,
                "path": str((root / entry.file.path).resolve()),
                "parts": [str((root / part).resolve()) for part in entry.file.files],
                "threads": entry.target.threads,
                "precision": entry.target.precision,
                "variant": entry.file.variant,
            }
            for entry in entries
        ],
        "inputs": str(inputs),
        "root": str(root.resolve()),
        "limits": _limits(entries),
        **settings.model_dump(exclude={"targets", "multistream"}),
        **(_MULTISTREAM if settings.multistream else {}),
    }


def _limits(entries: list[Entry]) -> dict[str, Any] | None:
    """All entries are of one target."""
    limits = entries[0].target.limits
    return None if limits is None else limits.for_device()


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
        plan = make_plan(entries, settings, folder / "inputs.npy", root)
        total = (3 if settings.multistream else 2) * len(entries) * settings.max_seconds
        with progress.task(f"profile {target.name}", total) as task:
            tell = _teller(task.advance, progress.say)
            TRANSPORTS.get(target.transport)().measure(target, plan, folder, tell)
        try:
            with np.load(folder / "samples.npz", allow_pickle=False) as archive:
                samples = {key: archive[key] for key in archive.files}
            return read_json(folder / "result.json"), samples
        except (OSError, ValueError, UsageError) as error:
            raise StageError(
                f"the device's results cannot be read: {error}", where=f"target {target.name}"
            ) from None


def _teller(
    advance: Callable[..., None], say: Callable[[str], None]
) -> Callable[[dict[str, Any]], None]:
    """Events to progress: seconds of measuring done, how narrow the interval is by now; messages."""
    spent: dict[tuple[str, ...], float] = {}
    figures: dict[str, float | str] = {}

    def tell(event: dict[str, Any]) -> None:
        if "message" in event:
            say(f"  {event['message']}")
            return
        amount, width = event["spent"], event["width"]
        runtime = event["models"][0].split("/")[1]
        interval = f"±{width / 2:.1%}" if width is not None else "…"
        if event["phase"] == "launches":
            figures.update(launches=event["launches"], interval=interval)
            return
        key = (event["phase"], *sorted(event["models"]))
        # Every launch begins anew.
        done = spent.get(key, 0.0) if amount >= spent.get(key, 0.0) else 0.0
        spent[key] = amount
        advance(
            amount - done, **{"runtime": runtime, "phase": key[0], "interval": interval, **figures}
        )

    return tell


def _check_limits(target: Target, environment: dict[str, Any]) -> None:
    """Raises StageError for a device (or its transport) that did not hold the models to the limits."""
    if target.limits is not None and not environment.get("emulated"):
        raise StageError(
            f"transport {target.transport!r} measured without the limits",
            where=f"target {target.name}",
            fix="take `limits` out of the descriptor",
        )


def _too_large(entries: list[Entry], told: dict[str, dict[str, Any]]) -> list[str]:
    """A warning for every teacher that the target is too small for; raises StageError for a student."""
    found = []
    for entry in entries:
        if "error" in told[entry.id]:
            name = f"{entry.file.role} ({entry.file.variant}) in {entry.runtime}"
            text = f"{name}: {told[entry.id]['error']}"
            if entry.file.role == "student":
                raise StageError(text, where=f"target {entry.target.name}")
            found.append(f"{entry.target.name}: {text}: it is not compared there")
    return found


def _measurement(
    entry: Entry,
    result: dict[str, Any],
    samples: dict[str, np.ndarray],
    sizes: Sizes,
    provenance: Provenance,
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
    low, high = throughput.mean_interval or throughput.p50_interval
    multistream = f"{entry.id}/multistream"
    return Measurement(
        role=entry.file.role,
        format=entry.file.format,
        variant=entry.file.variant,
        runtime=entry.runtime,
        runtime_version=result["version"],
        target=entry.target.name,
        path=entry.file.path,
        precision=result["precision"],
        threads=result.get("threads", entry.target.threads),
        provenance=provenance,
        conclusive=result["latency"]["conclusive"] and result["throughput"]["conclusive"],
        latency=latency,
        throughput=batch / throughput.mean,
        throughput_interval=(batch / high, batch / low),
        throughput_latency=throughput,
        memory=_memory(result, sizes),
        size=entry.file.size,
        compressed_size=sizes.compressed,
        load=result["load"],
        first=result["first"],
        warmup=result["latency"]["warmup"],
        launches=result.get("launches", 1),
        noise=tuple(result.get("noise", ())),
        energy=_energy(result.get("energy", ())),
        cold=_cold(result["cold"]) if "cold" in result else None,
        scenarios=scenarios(
            latency,
            _samples(samples, latency.samples),
            throughput,
            _samples(samples, multistream) if multistream in samples else None,
        ),
        device_parity=result.get("device_parity"),
        parity_error=result.get("parity_error"),
    )


def _provenance(environment: dict[str, Any]) -> Provenance:
    return "emulated" if environment.get("emulated") else "measured"


def _energy(values: Sequence[float | None]) -> Energy | None:
    """Joules per sample, from those of every launch; None unless every one could tell."""
    known = [value for value in values if value is not None and value > 0]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        return Energy(value=known[0], interval=None)
    low, high = launches_interval(np.array(known))
    value = float(np.exp(np.mean(np.log(known))))
    return Energy(value=value, interval=(min(low, value), max(high, value)))


def _memory(result: dict[str, Any], sizes: Sizes) -> Memory:
    peak, baseline = result["peak_rss"], result["baseline_rss"]
    return Memory(
        peak_rss=peak,
        baseline_rss=baseline,
        model=None if peak is None or baseline is None else max(0, peak - baseline),
        python_rss=result.get("python_rss"),
        private_dirty=result.get("private_dirty"),
        weights=sizes.weights,
        wasm_heap=result.get("wasm_heap"),
    )


def _cold(told: dict[str, list[float | None]]) -> ColdStart:
    def repeated(key: str) -> Repeated | None:
        values = [value for value in told[key] if value is not None]
        return Repeated(median=float(np.median(values)), values=tuple(values)) if values else None

    runtime, load, first = map(repeated, ("runtime_seconds", "load", "first"))
    assert runtime is not None
    assert load is not None
    assert first is not None
    return ColdStart(runtime=runtime, load=load, compile=repeated("compile"), first=first)


def _samples(samples: dict[str, np.ndarray], key: str) -> Samples:
    return Samples(samples[key], samples[f"{key}/rounds"], samples.get(f"{key}/launches"))


def _doubts(m: Measurement) -> list[str]:
    """What of this measurement is not to be relied on."""
    name = f"{m.target}: {m.role} ({m.variant}) in {m.runtime}"
    doubts = [f"{name}: {reason}" for reason in m.noise]
    if not m.conclusive:
        doubts.append(f"{name}: the median's interval stayed too wide (profile.max_seconds)")
    if not m.latency.steady:
        doubts.append(f"{name}: the latency was not steady")
    if m.device_parity and not m.device_parity.passed:
        error, tolerance = m.device_parity.max_error, m.device_parity.tolerance
        there, here = m.device_parity.accuracy, m.device_parity.accuracy_here
        known = there is not None and here is not None
        doubts.append(
            f"{name}: its outputs there differ from those here by {error:.1e} of the largest one "
            f"(tolerance {tolerance:g})"
            + (f": accuracy {there:.2%}, here {here:.2%}" if known else "")
        )
    return doubts


def _slow_quantized(measurements: list[Measurement], samples: dict[str, np.ndarray]) -> list[str]:
    """Quantized files that are not faster than the same model in float32: small models often are not."""
    found = []
    for small in (m for m in measurements if m.variant in QUANTIZED):
        for f32 in measurements:
            if (f32.role, f32.variant, f32.runtime) != (small.role, "f32", small.runtime):
                continue
            ratio, (_, high) = speedup(
                _samples(samples, f32.latency.samples), _samples(samples, small.latency.samples)
            )
            if high < 1:
                found.append(
                    f"{small.target}: {small.variant.upper()} does not pay in {small.runtime}: "
                    f"it takes {1 / ratio:.2f} times as long as float32"
                )
    return found


def memory_ratio(a: Memory, b: Memory) -> float | None:
    """What model a takes by what model b takes; None unless both were measured."""
    if a.model is None or b.model is None:
        return None
    return max(1, a.model) / max(1, b.model)


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
                    memory_ratio=memory_ratio(teacher.memory, student.memory),
                    compression=teacher.size / student.size,
                )
            )
    return comparisons
