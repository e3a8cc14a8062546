"""Stage `quantize`: the student's exported files in INT8, in `quantized/` of the run folder."""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.export.device import device_files
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models import role
from edgekd.pipeline.stages import Context
from edgekd.profile.targets import find
from edgekd.quantize.accuracy import Labelled, revert_until_it_holds, sensitivities
from edgekd.quantize.backend import Types, quantize, require, types, write
from edgekd.quantize.qdq import reverted
from edgekd.quantize.recipes import RECIPES, Recipe
from edgekd.quantize.samplers import calibration_samples
from edgekd.quantize.weights import compressed
from edgekd.results import (
    AccuracyAware,
    Calibration,
    ExportedFile,
    QatReport,
    QuantizeReport,
    SpeedAware,
    TradeOff,
)

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from edgekd.quantize.qat import Trained

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


@dataclass(frozen=True)
class Made:
    """The INT8 model of each format, as ONNX, and what there is to say about it."""

    models: dict[str, ModelProto]
    opset: int | None = None
    trained: Trained | None = None
    accuracy_aware: AccuracyAware | None = None
    speed_aware: tuple[SpeedAware, ...] = ()


@dataclass(frozen=True)
class Job:
    """What is to be quantized: both models, calibration samples, the student as ONNX."""

    context: Context
    recipe: Recipe
    types: Types
    student: nn.Module
    teacher: nn.Module
    chosen: np.ndarray
    source: Path
    formats: tuple[str, ...]


def run(context: Context) -> None:
    """Write an INT8 file per exported format of the student, and `quantize.json` about them."""
    settings, dataset = context.config.quantize, context.dataset
    if settings is None:
        context.progress.say("  not configured: no INT8 files")
        QuantizeReport(files=(), calibration=None).write(context.folder / "quantize.json")
        return
    require()
    recipe = RECIPES.find(settings.recipe, context.base)
    wanted = types(recipe, [find(name, context.base) for name in context.config.profile.targets])
    student = role.load(context.run, "student", context.base)
    teacher = role.load(context.run, "teacher", context.base)
    chosen = calibration_samples(recipe, dataset, teacher, student)
    exported = [
        file for file in context.run.export.files if (file.role, file.variant) == ("student", "f32")
    ]
    formats = tuple(dict.fromkeys(file.format for file in exported))
    with tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch:
        job = Job(
            context,
            recipe,
            wanted,
            student,
            teacher,
            chosen,
            source=_onnx(context, student, exported, Path(scratch)),
            formats=formats,
        )
        started = time.monotonic()
        if recipe.mode != "static":
            files = _compressed(job)
            made = Made({})
        else:
            made = _trained(job) if settings.qat is not None else _calibrated(job)
            opset = made.opset or next((f.opset for f in exported if f.opset), None)
            files = [
                _written(context, format, model, started, opset, trained=made.trained is not None)
                for format, model in made.models.items()
            ]
    report = None if made.trained is None else _checked(context, made.trained, files)
    QuantizeReport(
        files=tuple(files),
        calibration=Calibration(
            recipe=recipe.model_dump(mode="json"),
            samples=tuple(int(index) for index in chosen),
            reduced_range=wanted.reduced_range,
            signed=wanted.signed,
        ),
        qat=report,
        accuracy_aware=made.accuracy_aware,
        speed_aware=made.speed_aware,
        device=device_files(
            files, context.config.export, dataset.input, dataset.inputs.dtype.name, context.folder
        ),
    ).write(context.folder / "quantize.json")


def _onnx(
    context: Context, student: nn.Module, exported: list[ExportedFile], scratch: Path
) -> Path:
    """The student's ONNX file; made for the purpose where only other formats are deployed."""
    for file in exported:
        if file.format == "onnx":
            return context.run.path / file.path
    example = context.dataset.tensor(np.resize(context.dataset.train, 2))
    source = Source(student, context.run.card("student"), example, scratch / "student.onnx")
    return EXPORTERS.get("onnx")(source, scratch, context.config.export).path


def _calibrated(job: Job) -> Made:
    """Post-training quantization, with layers reverted where accuracy or speed ask for it."""
    import onnx

    context, settings = job.context, job.context.config.quantize
    assert settings is not None
    samples = context.dataset.tensor(job.chosen).numpy()
    with context.progress.task("calibrate", 1) as task:
        quantized = quantize(job.source, job.recipe, list(samples[:, None]), job.types)
        task.advance()
    original = onnx.load(job.source)
    slow: dict[str, frozenset[str]] = {format: frozenset() for format in job.formats}
    speeds: list[SpeedAware] = []
    if settings.speed_aware:
        slow, speeds = _speed_aware(job, quantized, original, samples[:1])
    keep, aware = {**slow}, None
    if settings.max_drop_share is not None:
        # The accuracy of one function for both formats; what is slow in either is not needed in it.
        common = frozenset.intersection(*slow.values())
        found, aware = _accuracy_aware(job, quantized, original, samples, common)
        keep = {format: names | found for format, names in slow.items()}
    return Made(
        {format: reverted(quantized, original, names) for format, names in keep.items()},
        accuracy_aware=aware,
        speed_aware=tuple(speeds),
    )


def _accuracy_aware(
    job: Job,
    quantized: ModelProto,
    original: ModelProto,
    samples: np.ndarray,
    slow: frozenset[str],
) -> tuple[frozenset[str], AccuracyAware]:
    from edgekd.distill.trainer import predict

    context, settings = job.context, job.context.config.quantize
    assert settings is not None
    assert settings.max_drop_share is not None
    dataset, progress = context.dataset, context.progress
    teacher = predict(job.teacher, dataset, job.chosen).numpy()
    with progress.task("sensitivity of every layer", 1):
        ranked = sensitivities(quantized, original, samples, teacher)
    validation = Labelled(
        dataset.tensor(dataset.validation).numpy(), dataset.labels[dataset.validation]
    )

    def tell(point: TradeOff) -> None:
        progress.say(
            f"  {len(point.layers)} layers in float32: {100 * point.drop:+.2f} points of accuracy lost "
            f"on the validation split, {point.size:,} bytes"
        )

    keep, curve = revert_until_it_holds(
        quantized,
        original,
        [layer.layer for layer in ranked],
        validation,
        max_drop=settings.max_drop_share,
        max_evaluations=settings.max_evaluations,
        always=slow,
        told=tell,
    )
    holds = any(point.holds and set(point.layers) == keep for point in curve)
    if not holds:
        progress.say(
            f"  warning: max_drop {settings.max_drop} does not hold with every layer in float32"
        )
    order = [layer.layer for layer in ranked]
    return keep, AccuracyAware(
        max_drop=settings.max_drop_share,
        holds=holds,
        reverted=tuple(name for name in order if name in keep),
        sensitivity=ranked,
        curve=curve,
    )


def _speed_aware(
    job: Job, quantized: ModelProto, original: ModelProto, sample: np.ndarray
) -> tuple[dict[str, frozenset[str]], list[SpeedAware]]:
    from edgekd.quantize.qdq import layers
    from edgekd.quantize.speed import slow_layers

    context = job.context
    targets = [find(name, context.base) for name in context.config.profile.targets]
    here = next((t for t in targets if t.transport == "local" and t.limits is None), None)
    nothing: dict[str, frozenset[str]] = {format: frozenset() for format in job.formats}
    if here is None:
        context.progress.say(
            "  warning: speed_aware measures on this machine, which is no target: no layer left alone"
        )
        return nothing, []
    found, reports = nothing, []
    for format in job.formats:
        count = len(layers(quantized))
        with context.progress.task(f"speed of every layer, {format}", count) as task:
            found[format], speeds = slow_layers(
                quantized,
                original,
                format,
                sample,
                threads=here.threads,
                precision=here.precision,
                told=task.advance,
            )
        reports.append(SpeedAware(format=format, target=here.name, layers=speeds))
        context.progress.say(
            f"  {format}: {len(found[format])} of {count} layers are slower in INT8 and stay float32"
        )
    return found, reports


def _trained(job: Job) -> Made:
    from edgekd.quantize import qat

    context, settings = job.context, job.context.config.quantize
    assert settings is not None
    if job.recipe.exclude:
        context.progress.say("  note: qat trains every layer; the recipe's exclude is not used")
    trained = qat.train_quantized(
        context,
        job.student,
        job.teacher,
        job.recipe,
        job.chosen,
        reduced_range=job.types.reduced_range,
    )
    model, opset = qat.deployable(trained, context)
    report = trained.report
    context.progress.say(
        f"  accuracy on the validation split: {report.validation_f32:.2%} in float32, "
        f"{report.validation_before:.2%} in INT8, {report.validation_after:.2%} trained further"
    )
    return Made(dict.fromkeys(job.formats, model), opset, trained=trained)


def _checked(context: Context, trained: Trained, files: list[ExportedFile]) -> QatReport:
    """Hold the files to the trained model, and keep its answers for verify."""
    from edgekd.quantize import qat

    paths = {file.format: context.folder / Path(file.path).name for file in files}
    parity = qat.check_parity(trained, context, paths, context.config.verify.int8_tolerance)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=qat.test_logits(trained, context))
    write_bytes(context.folder / "trained.npz", buffer.getvalue())
    return trained.report.model_copy(update={"parity": parity})


def _written(
    context: Context,
    format: str,
    model: ModelProto,
    started: float,
    opset: int | None,
    *,
    trained: bool,
) -> ExportedFile:
    path = context.folder / f"student-int8{_SUFFIXES[format]}"
    files = write(model, format, path)
    return _record(
        path, files, format, started, opset if format == "onnx" else None, trained=trained
    )


def _record(
    path: Path,
    files: tuple[Path, ...],
    format: str,
    started: float,
    opset: int | None,
    *,
    trained: bool = False,
) -> ExportedFile:
    return ExportedFile(
        role="student",
        format=format,
        variant="int8",
        path=f"quantized/{path.name}",
        files=tuple(f"quantized/{part.name}" for part in files),
        size=sum(part.stat().st_size for part in files),
        seconds=round(time.monotonic() - started, 3),
        opset=opset,
        trained=trained,
    )


def _compressed(job: Job) -> list[ExportedFile]:
    """Dynamic and weight-only quantization, which need no samples."""
    found = []
    for format in job.formats:
        started = time.monotonic()
        path = job.context.folder / f"student-int8{_SUFFIXES[format]}"
        files = compressed(job.source, format, path, job.recipe)
        found.append(_record(path, files, format, started, None))
    return found
