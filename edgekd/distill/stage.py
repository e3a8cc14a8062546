"""Stage `distill`: the student learns from the teacher, as `student/` of the run folder."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data.resolve import Dataset
from edgekd.data.views import Views
from edgekd.distill.doctor import examine
from edgekd.distill.knowledge_store import KnowledgeStore
from edgekd.distill.method import FeatureMethod, Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.distill.trainer import TeacherKnowledge, train
from edgekd.models import role
from edgekd.pipeline.stages import Context, data_part
from edgekd.teachers.kinds.torch import TorchTeacher
from edgekd.teachers.teacher import Teacher, load


def run(context: Context) -> None:
    """Write `student/` (model.safetensors, model.json, metrics.json, history.json)."""
    config, dataset = context.config, context.dataset
    student = role.build(config.student, "student", dataset, seed=config.seed, base=context.base)
    objective = Objective(config.distill.alpha, config.distill.methods.entries)
    teacher = load(context.run, context.base, dataset) if objective.needs_teacher else None
    views = Views(dataset, config.data.augment, config.seed)
    if teacher is not None:
        dataset = _taught(teacher, dataset, context)
        teacher.prepare(context, views)
        if isinstance(teacher, TorchTeacher):
            example = dataset.tensor(np.resize(dataset.train, 4))
            objective.prepare(student, teacher.module, example, config.seed)
        _tell_taps(objective, context)
        if config.distill.doctor:
            _consult_doctor(student, teacher, objective, views, context)
    ask = _knowledge(context, views, teacher, objective) if teacher is not None else None
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
        teacher=ask,
    )
    report = role.save(
        student, config.student, "student", context.folder, dataset,
        seed=config.seed, history=history,
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    assert report.test is not None
    context.progress.say(f"  student accuracy: {report.test.value:.2%} on the test split (PyTorch)")


def _consult_doctor(
    student: nn.Module,
    teacher: Teacher,
    objective: Objective,
    views: Views,
    context: Context,
) -> None:
    config, dataset = context.config.distill, views.dataset
    batch = np.resize(teacher.known(dataset.train), config.batch_size)
    inputs = views.batch(batch, 0)
    # Not through the store: it must hold what training batches give, and nothing else.
    known = _seen(teacher, objective)(inputs, torch.from_numpy(batch), 0)
    accuracy = context.run.training("teacher").validation
    labels = torch.from_numpy(dataset.labels[batch])
    for complaint in examine(student, objective, config, accuracy, inputs, known, labels):
        context.progress.say(f"  warning: {complaint}")


def _taught(teacher: Teacher, dataset: Dataset, context: Context) -> Dataset:
    """The data with those training samples that the teacher has an answer to."""
    known = teacher.known(dataset.train)
    if len(known) == len(dataset.train):
        return dataset
    context.progress.say(
        f"  note: {len(dataset.train) - len(known)} of {len(dataset.train)} training samples are left "
        "out: the teacher has no answer to them"
    )
    return dataclasses.replace(dataset, train=known)


def _tell_taps(objective: Objective, context: Context) -> None:
    for method in objective.methods:
        if isinstance(method, FeatureMethod):
            pairs = ", ".join(f"{t} → {s}" for t, s in method.taps or ())
            context.progress.say(f"  {method.name}: {pairs}")


def _knowledge(
    context: Context, views: Views, teacher: Teacher, objective: Objective
) -> TeacherKnowledge:
    """What the teacher says of a batch: its logits from the store that all runs beside this one
    share, or, where features are needed too, by running it.
    """
    if objective.teacher_taps or teacher.keeps or not teacher.sees_views:
        return _seen(teacher, objective)
    config, run = context.config, context.run
    artifacts = run.manifest.stages["teacher"].artifacts
    store = KnowledgeStore(
        run.path.parent / ".knowledge",
        {
            "teacher": {
                name: artifact.sha256
                for name, artifact in artifacts.items()
                if name.startswith("teacher/model.")
            },
            "data": data_part(config, context.base),
        },
        views=views.count,
        samples=len(context.dataset.labels),
        classes=len(context.dataset.classes),
    )

    def ask(inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        def say(x: Tensor) -> Tensor:
            return teacher.knowledge(x, indices, view).logits

        return Knowledge(store.logits(say, inputs, indices, view))

    return ask


def _seen(teacher: Teacher, objective: Objective) -> TeacherKnowledge:
    """By asking the teacher itself, with the features that the methods look at."""
    if not isinstance(teacher, TorchTeacher) or not objective.teacher_taps:
        return teacher.knowledge
    tapped = Tapped(teacher.module, objective.teacher_taps).__enter__()

    def ask(inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        with torch.no_grad():
            return Knowledge(*tapped(inputs))

    return ask
