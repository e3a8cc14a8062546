"""Stage `distill`: the student learns from the teacher, as `student/` of the run folder."""

from __future__ import annotations

from edgekd.data.views import Views
from edgekd.distill.knowledge_store import KnowledgeStore
from edgekd.distill.method import Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.trainer import TeacherKnowledge, train
from edgekd.models import role
from edgekd.pipeline.stages import Context, data_part


def run(context: Context) -> None:
    """Write `student/` (model.safetensors, model.json, metrics.json, history.json)."""
    config, dataset = context.config, context.dataset
    student = role.build(config.student, "student", dataset, seed=config.seed, base=context.base)
    objective = Objective(config.distill.alpha, config.distill.methods.entries)
    views = Views(dataset, config.data.augment, config.seed)
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
        teacher=_knowledge(context, views) if objective.needs_teacher else None,
    )
    report = role.save(
        student, config.student, "student", context.folder, dataset,
        seed=config.seed, history=history,
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    context.progress.say(f"  student accuracy: {report.test.value:.2%} on the test split (PyTorch)")


def _knowledge(context: Context, views: Views) -> TeacherKnowledge:
    """The teacher's logits for a batch, from the store that all runs beside this one share."""
    config, run = context.config, context.run
    teacher = role.load(run, "teacher", context.base)
    store = KnowledgeStore(
        run.path.parent / ".knowledge",
        {
            "teacher": run.manifest.stages["teacher"].artifacts["teacher/model.safetensors"].sha256,
            "card": run.card("teacher").model_dump(mode="json"),
            "data": data_part(config, context.base),
        },
        views=views.count,
        samples=len(context.dataset.labels),
        classes=len(context.dataset.classes),
    )
    return lambda inputs, indices, view: Knowledge(store.logits(teacher, inputs, indices, view))
