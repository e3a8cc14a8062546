"""Stage `distill`: the student learns from the teacher, as `student/` of the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.config.schema import Config
from edgekd.config.units import format_quantity
from edgekd.data.views import Views
from edgekd.distill.compute import autocast, teacher_precision
from edgekd.distill.doctor import examine, gradient_line, gradient_norms
from edgekd.distill.knowledge_store import FOLDER, StoredKnowledge
from edgekd.distill.method import FeatureMethod, Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.distill.trainer import TeacherKnowledge, train
from edgekd.models import role
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context, data_part
from edgekd.results import Computing


def run(context: Context) -> None:
    """Write `student/` (model.safetensors, model.json, metrics.json, history.json)."""
    config, dataset = context.config, context.dataset
    student = role.build(config.student, "student", dataset, seed=config.seed, base=context.base)
    objective = Objective(config.distill.alpha, config.distill.methods.entries)
    teacher = role.load(context.run, "teacher", context.base) if objective.needs_teacher else None
    views = Views(dataset, config.data.augment, config.data.seed)
    if teacher is not None:
        example = dataset.tensor(np.resize(dataset.train, 4))
        objective.prepare(student, teacher, example, config.seed)
        _tell_taps(objective, context)
        if config.distill.doctor:
            _consult_doctor(student, teacher, objective, views, context)
    checkpoint = context.folder / "checkpoint.pt"
    history = train(
        student,
        dataset,
        views,
        objective,
        config.distill,
        seed=config.seed,
        checkpoint=checkpoint,
        progress=context.progress,
        name="student",
        teacher=_knowledge(context, views, teacher, objective) if teacher is not None else None,
    )
    report = role.save(
        student, config.student, "student", context.folder, dataset,
        seed=config.seed, history=history,
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    context.progress.say(f"  student accuracy: {report.test.value:.2%} on the test split (PyTorch)")


def _consult_doctor(
    student: nn.Module,
    teacher: nn.Module,
    objective: Objective,
    views: Views,
    context: Context,
) -> None:
    config, dataset = context.config.distill, context.dataset
    batch = np.resize(dataset.train, config.batch_size)
    inputs = views.batch(batch, 0)
    # Not through the store: it must hold what training batches give, and nothing else.
    with torch.no_grad(), Tapped(teacher, objective.teacher_taps) as tapped:
        known = Knowledge(*tapped(inputs))
        again = Knowledge(*tapped(inputs[: len(inputs) // 2]))
    accuracy = context.run.training("teacher").validation
    labels = torch.from_numpy(dataset.labels[batch])
    for complaint in examine(
        student, objective, config, accuracy, inputs, known, labels, again=again
    ):
        context.progress.say(f"  warning: {complaint}")
    norms = gradient_norms(student, objective, inputs, known, labels)
    context.progress.say(f"  {gradient_line(norms)}")


def _tell_taps(objective: Objective, context: Context) -> None:
    for method in objective.methods:
        if isinstance(method, FeatureMethod):
            pairs = ", ".join(f"{t} → {s}" for t, s in method.taps or ())
            context.progress.say(f"  {method.name}: {pairs}")


def _knowledge(
    context: Context, views: Views, teacher: nn.Module, objective: Objective
) -> TeacherKnowledge:
    """What the teacher says of a batch, from the store that all runs beside this one share."""
    config, run, dataset = context.config.distill.knowledge, context.run, context.dataset
    tapped = Tapped(teacher, objective.teacher_taps).__enter__()

    def ask(inputs: Tensor, precision: str) -> Knowledge:
        teacher.to(inputs.device)
        with torch.no_grad(), autocast(Computing(device=inputs.device.type, precision=precision)):
            return Knowledge(*tapped(inputs))

    example = views.batch(dataset.train[: context.config.distill.batch_size], 0)
    precision = teacher_precision(config.teacher, lambda p: ask(example, p).logits)
    stored = StoredKnowledge(
        lambda inputs, indices, view: ask(inputs, precision),
        run.path.parent / FOLDER,
        knowledge_identity(context.config, context.base, run, precision),
        config,
        views=views.count,
        samples=len(dataset.labels),
        rows=dataset.train,
        example=ask(example, precision),
    )
    if config.store and not stored.stores:
        context.progress.say(
            f"  the teacher runs in every step: its knowledge would take "
            f"{format_quantity(stored.size, 'bytes')}, above distill.knowledge.limit {config.limit}"
        )
    return stored


def knowledge_identity(config: Config, base: Path, run: Run, precision: str) -> dict[str, Any]:
    """What the teacher's answers depend on; not the student, nor the seed of its training."""
    data = data_part(config, base)
    del data["run_seed"]
    return {
        "teacher": run.manifest.stages["teacher"].artifacts["teacher/model.safetensors"].sha256,
        "card": run.card("teacher").model_dump(mode="json"),
        "data": data,
        "precision": precision,
    }
