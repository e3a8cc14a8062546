"""Stage `quantize`: the student's exported files in INT8, in `quantized/` of the run folder."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgekd.errors import StageError
from edgekd.export.device import device_files
from edgekd.models import role
from edgekd.pipeline.stages import Context
from edgekd.profile.targets import Target, find
from edgekd.quantize.accuracy import TradeOffs, fewest_reverted
from edgekd.quantize.arithmetic import arithmetic
from edgekd.quantize.backend import Inputs, Quantized, Source, prepare, require, usable
from edgekd.quantize.contents import notes_on
from edgekd.quantize.recipes import RECIPES, Recipe
from edgekd.quantize.samplers import calibration_samples
from edgekd.quantize.sensitivity import SUFFIX, logits, sensitivities
from edgekd.quantize.speed import in_turns, median, place, slow_layers
from edgekd.results import (
    AccuracyAware,
    Arithmetic,
    BackendSpeed,
    Calibration,
    ExportedFile,
    LayerSensitivity,
    QatReport,
    QuantizeReport,
    SpeedAware,
    Variant,
)
from edgekd.tasks.task import of
from edgekd.teachers.teacher import Teacher, load

# Sensitivities are measured on so many of the calibration samples.
_SENSITIVITY_SAMPLES = 64


def run(context: Context) -> None:
    """Write an INT8 file per exported format of the student, and `quantize.json` about them.

    Raises StageError when a model cannot be quantized, or not with the accuracy asked for.
    """
    settings, dataset = context.config.quantize, context.dataset
    if settings is None:
        context.progress.say("  not configured: no INT8 files")
        QuantizeReport(files=(), calibration=None).write(context.folder / "quantize.json")
        return
    require()
    recipe = RECIPES.find(settings.recipe, context.base)
    sources = [
        file for file in context.run.export.files if (file.role, file.variant) == ("student", "f32")
    ]
    work = _Work(context, recipe, sources)
    if settings.qat is None:
        for source in sources:  # before the first of them takes its time
            usable(work.source(source), recipe)
        files, report = [work.file(source) for source in sources], None
    else:
        files, report = work.trained()
    calibration = Calibration(
        recipe=recipe.model_dump(mode="json"),
        samples=tuple(int(index) for index in work.chosen),
        arithmetic=work.types,
    )
    device = device_files(
        files, context.config.export, dataset.input, dataset.inputs.dtype.name, context.folder
    )
    QuantizeReport(
        files=tuple(files),
        calibration=calibration,
        device=device,
        accuracy_aware=tuple(work.accuracy_aware),
        speed_aware=tuple(work.speed_aware),
        backends=tuple(work.backends),
        qat=report,
    ).write(context.folder / "quantize.json")


@dataclass
class _Work:
    """What all files of a run are quantized with, and what was found out on the way."""

    context: Context
    recipe: Recipe
    sources: list[ExportedFile]
    accuracy_aware: list[AccuracyAware] = field(default_factory=list)
    speed_aware: list[SpeedAware] = field(default_factory=list)
    backends: list[BackendSpeed] = field(default_factory=list)

    @cached_property
    def targets(self) -> list[Target]:
        context = self.context
        return [find(name, context.base) for name in context.config.profile.targets]

    @cached_property
    def types(self) -> Arithmetic:
        return arithmetic(self.recipe, self.targets)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Indices of the calibration samples."""
        context = self.context
        student = role.load(context.run, "student", context.base)
        chosen = calibration_samples(self.recipe, context.dataset, self._teacher, student)
        if len(chosen) < self.recipe.samples:
            context.progress.say(
                f"  note: calibrated with {len(chosen)} samples, which is all there are; the recipe "
                f"asks for {self.recipe.samples}"
            )
        return chosen

    def trained(self) -> tuple[list[ExportedFile], QatReport]:
        """The INT8 files of all formats, after training with fake quantization."""
        from edgekd.quantize.qat import deploy, train_quantized

        student = role.load(self.context.run, "student", self.context.base)
        started = time.monotonic()
        trained = train_quantized(self.context, student, self.recipe, self.chosen, self.types)
        return deploy(trained, self.context, self.sources, started)

    @cached_property
    def _teacher(self) -> Teacher:
        return load(self.context.run, self.context.base, self.context.dataset)

    @cached_property
    def samples(self) -> np.ndarray:
        """(n, …) float32."""
        samples: np.ndarray = self.context.dataset.tensor(self.chosen).numpy()
        return samples

    def file(self, exported: ExportedFile) -> ExportedFile:
        """The INT8 file of one format."""
        started = time.monotonic()
        context, format = self.context, exported.format
        variant: Variant = "int4" if self.recipe.method == "weights-int4" else "int8"
        name = Path(exported.path).name.replace("student.", f"student-{variant}.")
        path = context.folder / name
        quantized = self._left_alone(format, self._quantized(exported))
        float32 = self._reverted(exported, quantized)
        written = quantized.write(path, float32)
        file = ExportedFile(
            role="student",
            format=format,
            variant=variant,
            path=f"quantized/{path.name}",
            files=tuple(f"quantized/{part.name}" for part in written),
            size=sum(part.stat().st_size for part in written),
            seconds=round(time.monotonic() - started, 3),
            opset=exported.opset,
            producer=quantized.producer,
            notes=quantized.notes,
        )
        told = notes_on(file, exported, path)
        for note in told:
            context.progress.say(f"  note: {name}: {note}")
        return file.model_copy(update={"notes": (*file.notes, *told)})

    def source(self, exported: ExportedFile) -> Source:
        """The file, beside its ONNX version."""
        root = self.context.run.path
        onnx = next((root / f.path for f in self.sources if f.format == "onnx"), None)
        return Source(exported.format, root / exported.path, onnx, self.context.folder)

    def _quantized(self, exported: ExportedFile) -> Quantized:
        """Calibrated; by the backend that is faster on the target where the recipe leaves it open."""
        root, progress = self.context.run.path, self.context.progress
        source = self.source(exported)
        samples: list[Inputs] = list(self.samples[:, None])
        names = usable(source, self.recipe)
        where = place(self.targets, exported.format) if len(names) > 1 else None
        if where is None:
            names = names[:1]
        made: dict[str, Quantized] = {}
        with progress.task(f"quantize {exported.format}", len(names)) as task:
            for name in names:
                try:
                    made[name] = prepare(source, self.recipe, samples, self.types, by=name)
                except StageError as error:
                    # Another one may do it; the last one's failure is the user's.
                    if not made and name == names[-1]:
                        raise
                    progress.say(
                        f"  note: {name} does not quantize {exported.format}: {error.what}"
                    )
                task.advance(backend=name)
        if where is None or len(made) == 1:
            return next(iter(made.values()))
        with TemporaryDirectory(prefix="edgekd-backends-") as folder:
            suffix = SUFFIX[exported.format]
            files = {name: q.write(Path(folder, name + suffix)) for name, q in made.items()}
            files["float32"] = tuple(root / part for part in exported.files)
            medians = {
                name: median(found)
                for name, found in in_turns(files, where, self.samples, launches=3).items()
            }
        chosen = min(made, key=lambda name: medians[name])
        self.backends.append(
            BackendSpeed(
                format=exported.format,
                target=where.target.name,
                runtime=where.runtime,
                float32=medians["float32"],
                backends={name: medians[name] for name in made},
                chosen=chosen,
            )
        )
        progress.say(f"  {exported.format}: quantized by {chosen}, which is faster there")
        return made[chosen]

    def _left_alone(self, format: str, quantized: Quantized) -> Quantized:
        """Without the layers that are faster in float32."""
        settings, progress = self.context.config.quantize, self.context.progress
        assert settings is not None
        if not settings.speed_aware:
            return quantized
        where = place(self.targets, format)
        if where is None:
            progress.say(f"  note: no target can be measured with {format}: not speed-aware")
            return quantized
        started = time.monotonic()
        with progress.task(f"speed of layers, {format}", len(quantized.layers)) as task:
            layers, rest = slow_layers(
                format, quantized, where, self.samples, seconds=settings.speed_seconds, task=task
            )
        left = [speed.layer for speed in layers if speed.kept_float32]
        self.speed_aware.append(
            SpeedAware(
                format=format,
                target=where.target.name,
                runtime=where.runtime,
                layers=layers,
                left_out=rest,
                seconds=round(time.monotonic() - started, 3),
            )
        )
        if rest:
            progress.say(
                f"  note: {len(rest)} of {len(quantized.layers)} layers of {format} were not "
                "measured (quantize.speed_seconds)"
            )
        if left:
            progress.say(f"  {format}: {len(left)} layers stay in float32, which is faster there")
        return _Leaving(quantized, tuple(left))

    def _reverted(self, exported: ExportedFile, quantized: Quantized) -> tuple[str, ...]:
        """The layers that accuracy needs in float32."""
        context, format = self.context, exported.format
        settings, dataset = context.config.quantize, context.dataset
        assert settings is not None
        if settings.max_drop_share is None:
            return ()
        inputs = dataset.tensor(dataset.validation).numpy()
        original = context.run.path / exported.path
        with context.progress.task(f"accuracy, {format}", settings.max_evaluations) as task:
            labels, of_data = dataset.labels[dataset.validation], of(dataset.task)
            offs = TradeOffs(
                format, quantized, inputs, lambda found: of_data.value(found, labels), task
            )
            before = offs.accuracy(original)
            reverted, ranked = fewest_reverted(
                offs,
                before - settings.max_drop_share,
                settings.max_evaluations,
                lambda: self._sensitivities(format, original, quantized),
                where=original,
            )
        self.accuracy_aware.append(
            AccuracyAware(
                format=format,
                max_drop=settings.max_drop_share,
                samples=len(inputs),
                float32=before,
                size_float32=exported.size,
                sensitivities=ranked,
                curve=tuple(offs.known[count] for count in sorted(offs.known)),
                reverted=reverted,
            )
        )
        if reverted:
            context.progress.say(
                f"  {format}: {reverted} of {len(quantized.layers)} layers back in float32"
            )
        return offs.order[:reverted]

    def _sensitivities(
        self, format: str, original: Path, quantized: Quantized
    ) -> tuple[LayerSensitivity, ...]:
        dataset = self.context.dataset
        # Evenly over the indices, which are sorted and may be so by class.
        count = min(_SENSITIVITY_SAMPLES, len(self.chosen))
        picked = np.linspace(0, len(self.chosen) - 1, count).astype(int)
        inputs = self.samples[picked]
        student = logits(format, original, inputs)
        teacher = self._teacher.answers(dataset, self.chosen[picked]).astype(np.float64)
        # Where it has no answer, the student's own is what must be kept.
        teacher = np.where(np.isfinite(teacher), teacher, student)
        with self.context.progress.task(f"sensitivity, {format}", len(quantized.layers)) as task:
            return sensitivities(format, quantized, inputs, student, teacher, task)


class _Leaving:
    """A quantized model of which some layers stay in float32 whatever else does."""

    def __init__(self, quantized: Quantized, left: tuple[str, ...]) -> None:
        self._quantized, self._left = quantized, left
        self.layers = tuple(layer for layer in quantized.layers if layer not in left)
        self.producer, self.notes = quantized.producer, quantized.notes

    def write(self, path: Path, float32: Collection[str] = ()) -> tuple[Path, ...]:
        return self._quantized.write(path, [*self._left, *float32])
