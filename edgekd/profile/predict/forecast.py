"""Latency of files on a target that is not attached."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgekd.config.schema import Profile
from edgekd.errors import UsageError
from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.predict.model import Estimate, RuntimeModel
from edgekd.profile.predict.records import Calibration
from edgekd.profile.predict.steps import Step, executed_steps, input_shape
from edgekd.profile.targets import TARGETS, Target
from edgekd.results import ExportedFile, Prediction, ProfileReport

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run

# Fewer networks say too little of a device.
_LEAST_NETWORKS = 8


class Forecast(NamedTuple):
    """An estimate with the operators that it is of, in the order of execution."""

    steps: list[Step]
    estimate: Estimate


def cost_model_path(target: Target, base: Path) -> Path:
    """The target's cost model, in the first targets folder that has it. Raises UsageError."""
    name = target.cost_model or f"{target.name}.cost.json"
    for folder in TARGETS.folders(base):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(
        f"there is no cost model {name} in {TARGETS.folder}/",
        where=f"target {target.name}",
        fix=f"where the device is attached: edgekd targets calibrate {target.name}",
    )


def forecast(
    path: Path, target: Target, runtime: str, calibration: Calibration, *, where: str
) -> Forecast:
    """Predict one file at batch size 1. `where` names the cost model in errors.

    Raises UsageError when the cost model does not speak of this runtime, version or setting,
    StageError when the runtime here cannot compile the model.
    """
    model = _fitted(calibration, _checked(calibration, target, runtime, where))
    shape = input_shape(path, runtime, 1)
    steps = executed_steps(path, runtime, shape, threads=target.threads, precision=target.precision)
    return Forecast(steps, model.predict(steps))


def with_predictions(
    report: ProfileReport, run: Run, targets: list[Target], settings: Profile, base: Path
) -> ProfileReport:
    """The report with what the targets that are not attached would take. Raises like `forecast`."""
    if settings.batch_size != 1:
        raise UsageError(
            f"is {settings.batch_size}, but cost models predict single inferences",
            where="profile.batch_size",
            fix="set it to 1, or name only targets that are attached",
        )
    found: list[Prediction] = []
    warnings = []
    for target in targets:
        if not target.predicted:
            continue
        path = cost_model_path(target, base)
        calibration = Calibration.read(path)
        here = [
            _prediction(file, target, runtime, calibration, run.path, str(path))
            for runtime in target.runtimes
            for file in run.files
            if file.format in RUNTIMES[runtime].formats
        ]
        if not here:
            raise UsageError(
                f"target {target.name!r} has the runtimes {', '.join(target.runtimes)}, which open "
                "none of the exported formats",
                where="export.formats",
            )
        found += here
        warnings.append(
            f"{target.name}: its latencies are predicted, not measured ({here[0].calibrated})"
        )
        warnings += [
            f"{p.target}: the cost model has not seen {', '.join(p.unknown)} of the {p.role} "
            f"({p.variant}) in {p.runtime}: its interval is wide"
            for p in here
            if p.unknown
        ]
    return report.model_copy(
        update={"predictions": tuple(found), "warnings": (*report.warnings, *warnings)}
    )


def _prediction(
    file: ExportedFile,
    target: Target,
    runtime: str,
    calibration: Calibration,
    root: Path,
    where: str,
) -> Prediction:
    estimate = forecast(root / file.path, target, runtime, calibration, where=where).estimate
    return Prediction(
        role=file.role,
        format=file.format,
        variant=file.variant,
        runtime=runtime,
        runtime_version=calibration.versions[runtime],
        target=target.name,
        path=file.path,
        precision=target.precision,
        threads=target.threads,
        p50=estimate.seconds,
        p50_interval=estimate.interval,
        size=file.size,
        unknown=estimate.unknown,
        calibrated=calibrated(calibration),
    )


def calibrated(calibration: Calibration) -> str:
    """When and on what a cost model was measured, for people."""
    cpu = str(calibration.device.get("cpu_model") or "an unnamed CPU")[:100]
    return f"calibrated {calibration.measured[:10]} on {cpu}"


def _checked(calibration: Calibration, target: Target, runtime: str, where: str) -> str:
    """The runtime, where the cost model speaks of it as the target runs it."""
    here = RUNTIMES[runtime].session.version()
    said = {
        "threads": (calibration.threads, target.threads),
        "precision": (calibration.precision, target.precision),
        f"{runtime} version": (calibration.versions.get(runtime, "none"), here),
    }
    wrong = [f"{name} {then}, not {now}" for name, (then, now) in said.items() if then != now]
    count = sum(o.runtime == runtime for o in calibration.observations)
    if not wrong and (count < _LEAST_NETWORKS or runtime not in calibration.rooflines):
        wrong = [f"{count} networks in {runtime}, {_LEAST_NETWORKS} are the least"]
    if wrong:
        raise UsageError(
            f"the cost model was measured with {'; '.join(wrong)}",
            where=where,
            fix=f"calibrate again where the device is attached: edgekd targets calibrate {target.name}",
        )
    return runtime


@lru_cache(maxsize=8)
def _fitted_by_text(text: str, runtime: str) -> RuntimeModel:
    calibration = Calibration.model_validate_json(text)
    return RuntimeModel.of(calibration, runtime)


def _fitted(calibration: Calibration, runtime: str) -> RuntimeModel:
    return _fitted_by_text(calibration.model_dump_json(), runtime)
