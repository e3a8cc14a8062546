"""Stage `teacher`: the given weights, or a training here, as `teacher/` of the run folder."""

from __future__ import annotations

from edgekd.data.views import Views
from edgekd.distill.objective import Objective
from edgekd.distill.trainer import train
from edgekd.models import role
from edgekd.models.weights import load_weights
from edgekd.pipeline.stages import Context, weights_path


def run(context: Context) -> None:
    """Write `teacher/` (model.safetensors, model.json, metrics.json, history.json).

    Builds the student too, to refuse a pair that cannot work before hours of training.
    """
    config, dataset = context.config, context.dataset
    role.build(config.student, "student", dataset, seed=config.seed, base=context.base)
    teacher = role.build(config.teacher, "teacher", dataset, seed=config.seed, base=context.base)
    history = None
    checkpoint = context.folder / "checkpoint.pt"
    if config.teacher.weights:
        load_weights(teacher, weights_path(config.teacher, context.base))
    else:
        history = train(
            teacher,
            dataset,
            Views(dataset, config.data.augment, config.seed),
            Objective(),
            config.teacher.train,
            seed=config.seed,
            checkpoint=checkpoint,
            progress=context.progress,
            name="teacher",
        )
    report = role.save(
        teacher.eval(),
        config.teacher,
        "teacher",
        context.folder,
        dataset,
        seed=config.seed,
        history=history,
    )
    checkpoint.unlink(missing_ok=True)
    context.progress.say(f"  teacher accuracy: {report.test.value:.2%} on the test split (PyTorch)")
