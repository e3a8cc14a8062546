"""Stage `quantize`: the student's exported files in INT8, in `quantized/` of the run folder."""

from __future__ import annotations

import time

from edgekd.models import role
from edgekd.pipeline.stages import Context
from edgekd.quantize.backend import Sample, quantize, reduced_range, require
from edgekd.quantize.recipes import RECIPES
from edgekd.quantize.samplers import calibration_samples
from edgekd.results import Calibration, ExportedFile, QuantizeReport
from edgekd.teachers.teacher import load


def run(context: Context) -> None:
    """Write an INT8 file per exported format of the student, and `quantize.json` about them."""
    settings, dataset = context.config.quantize, context.dataset
    if settings is None:
        context.progress.say("  not configured: no INT8 files")
        QuantizeReport(files=(), calibration=None).write(context.folder / "quantize.json")
        return
    require()
    recipe = RECIPES.find(settings.recipe, context.base)
    student = role.load(context.run, "student", context.base)
    teacher = load(context.run, context.base, dataset)
    chosen = calibration_samples(recipe, dataset, teacher, student)
    samples = list(dataset.tensor(chosen).numpy()[:, None])
    sources = [file for file in context.run.export.files if file.role == "student"]
    files: list[ExportedFile] = []
    with context.progress.task("quantize", len(sources)) as task:
        for source in sources:
            started = time.monotonic()
            path = context.folder / context.run.path.joinpath(source.path).name.replace(
                "student.", "student-int8."
            )
            written = quantize(
                source.format,
                context.run.path / source.path,
                path,
                recipe,
                samples,
                max_drop=settings.max_drop_share,
                validation=_validation(context),
            )
            files.append(
                ExportedFile(
                    role="student",
                    format=source.format,
                    variant="int8",
                    path=f"quantized/{path.name}",
                    files=tuple(f"quantized/{part.name}" for part in written),
                    size=sum(part.stat().st_size for part in written),
                    seconds=round(time.monotonic() - started, 3),
                    opset=source.opset,
                )
            )
            task.advance(file=path.name)
    calibration = Calibration(
        recipe=recipe.model_dump(mode="json"),
        samples=tuple(int(index) for index in chosen),
        reduced_range=reduced_range(recipe),
    )
    report = QuantizeReport(files=tuple(files), calibration=calibration)
    report.write(context.folder / "quantize.json")


def _validation(context: Context) -> list[Sample]:
    dataset = context.dataset
    inputs = dataset.tensor(dataset.validation).numpy()[:, None]
    labels = dataset.labels[dataset.validation]
    return [(x, int(y)) for x, y in zip(inputs, labels, strict=True)]
