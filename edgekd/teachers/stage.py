"""Stage `teacher`: whatever kind it is of, as files in `teacher/` of the run folder."""

from __future__ import annotations

from edgekd.models import role
from edgekd.pipeline.stages import Context
from edgekd.results import TrainingReport
from edgekd.tasks.task import of
from edgekd.teachers.teacher import check_methods, kind_of


def run(context: Context) -> None:
    """Write `teacher/` (model.json, metrics.json, and what its kind needs to be opened again).

    Builds the student too, to refuse a pair that cannot work before hours of training.
    """
    config, dataset = context.config, context.dataset
    if not config.student.auto:
        role.build(config.student, "student", dataset, seed=config.seed, base=context.base)
    kind = kind_of(config.teacher.model)
    kind.make(context)
    teacher = kind.load(context.folder, context.base, dataset)
    check_methods(config.distill.methods.entries, teacher.provides, who=config.teacher.model)
    report = TrainingReport(
        validation=role.accuracy_of(
            teacher.answers(dataset, dataset.validation), dataset, dataset.validation
        ),
        test=role.accuracy_of(teacher.answers(dataset, dataset.test), dataset, dataset.test),
    )
    report.write(context.folder / "metrics.json")
    label = of(dataset.task).label
    if report.test is None:
        context.progress.say(f"  teacher {label}: it has no answers to the test split")
    else:
        context.progress.say(f"  teacher {label}: {report.test.value:.2%} on the test split")
