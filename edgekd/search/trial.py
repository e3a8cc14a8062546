"""One trial up to one rung: the student's own training, as the distill stage would do it, stopped early.

What it has learned stays in its checkpoint: the next rung, or the run of the winner, goes on to the same
weights as a training that was never stopped. The teacher's answers come from the store that all share.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.artifacts import disk_errors
from edgekd.config.schema import Config
from edgekd.data.resolve import Dataset
from edgekd.distill.trainer import predict
from edgekd.distill.workshop import CHECKPOINT, Workshop
from edgekd.pipeline.line import parse_config
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context
from edgekd.progress import Progress
from edgekd.results import Accuracy, ModelCard, Variant
from edgekd.search.cost import quantized_variant
from edgekd.search.engine import Job
from edgekd.search.records import Rung
from edgekd.tasks.kinds.classification import accuracy as top1
from edgekd.teachers.teacher import Teacher


def rung_path(folder: Path, epochs: int) -> Path:
    """Where the result after so many epochs lies."""
    return folder / f"epoch-{epochs:05}.json"


def run(job: Job, progress: Progress) -> Rung:
    """Train up to `job.until` epochs and look at the validation split; done before, only read.

    Raises StageError as a training does, Interrupted after Ctrl-C or SIGTERM; the checkpoint is kept.
    """
    folder = Path(job.folder)
    with _alone(folder):
        path = rung_path(folder, job.until)
        if (done := Rung.read_if_whole(path)) is not None:
            return done
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        config = parse_config(job.config)
        context = Context(config, Path(job.base), Run(Path(job.run)), folder, progress)
        workshop = Workshop(context)
        module = workshop.build(workshop.student)
        teacher = workshop.teacher if config.distill.methods.entries else None
        started = time.monotonic()
        history = workshop.train(
            "student", module, workshop.objective, teacher=teacher, until=job.until
        )
        answers = workshop.teacher.teacher
        found: dict[Variant, np.ndarray] = {"f32": _logits(module, workshop.dataset)}
        if job.quantized:
            variant = quantized_variant(config, context.base)
            assert variant is not None
            found[variant] = _quantized(module, context, answers, config)
        rung = _rung(
            found, workshop.dataset, answers, len(history.epochs), time.monotonic() - started
        )
        rung.write(path)
        return rung


def checkpoint(folder: Path) -> Path:
    """Where its training goes on from."""
    return folder / CHECKPOINT


def _rung(
    logits: dict[Variant, np.ndarray],
    dataset: Dataset,
    teacher: Teacher,
    epochs: int,
    seconds: float,
) -> Rung:
    labels = dataset.labels[dataset.validation]
    known = teacher.answers(dataset, dataset.validation).argmax(1)
    accuracy: dict[Variant, Accuracy] = {
        variant: top1(values.argmax(1), labels, len(dataset.classes))
        for variant, values in logits.items()
    }
    agreement: dict[Variant, float] = {
        variant: float((values.argmax(1) == known).mean()) for variant, values in logits.items()
    }
    return Rung(epochs=epochs, accuracy=accuracy, agreement=agreement, seconds=round(seconds, 3))


def _logits(module: nn.Module, dataset: Dataset) -> np.ndarray:
    values: np.ndarray = predict(module, dataset, dataset.validation).numpy()
    return values


def _quantized(module: nn.Module, context: Context, teacher: Teacher, config: Config) -> np.ndarray:
    """What its ONNX file answers once it is quantized by the recipe, every layer of it."""
    from edgekd.export.exporter import EXPORTERS, Source
    from edgekd.quantize.arithmetic import arithmetic
    from edgekd.quantize.backend import Source as Float
    from edgekd.quantize.backend import prepare
    from edgekd.quantize.recipes import RECIPES
    from edgekd.quantize.samplers import calibration_samples
    from edgekd.quantize.sensitivity import logits
    from edgekd.search.cost import places

    dataset = context.dataset
    assert config.quantize is not None
    recipe = RECIPES.find(config.quantize.recipe, context.base)
    card = ModelCard(
        role="student", model=config.student.model, args=config.student.args,
        classes=dataset.classes, input=dataset.input, parameters=None, seed=config.seed,
    )  # fmt: skip
    chosen = calibration_samples(recipe, dataset, teacher, module)
    samples = dataset.tensor(chosen).numpy()
    with tempfile.TemporaryDirectory(prefix="edgekd-trial-") as name:
        folder = Path(name)
        example = dataset.tensor(np.resize(dataset.train, 8))
        source = Source(module.eval(), card, example, folder / "student.onnx")
        exported = EXPORTERS.get("onnx")(source, folder, config.export)
        quantized = prepare(
            Float("onnx", exported.path, exported.path, folder),
            recipe,
            list(samples[:, None]),
            arithmetic(recipe, places(config, context.base)),
        )
        path = folder / "student-quantized.onnx"
        quantized.write(path)
        return logits("onnx", path, dataset.tensor(dataset.validation).numpy())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the trial: a worker whose search was killed may need a moment to stop."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
