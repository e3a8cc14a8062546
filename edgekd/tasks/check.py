"""What a configuration asks for that its data's task does not have: told before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgekd.errors import UsageError
from edgekd.registry import suggestion
from edgekd.results import SCORES
from edgekd.tasks.task import CLASSIFICATION, of

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.distill.method import Method

SEGMENTATION = "segmentation"


def check_task(config: Config, task: str, classes: Sequence[str]) -> None:
    """Both are those of the data. Raises UsageError with the key that does not go with them."""
    name = task.partition(":")[0]
    _check_budgets(config, task, classes)
    entries = () if config.distill.methods.auto else config.distill.methods.entries
    if name == CLASSIFICATION:
        for method in entries:
            if method.maps:
                raise UsageError(
                    f"{method.name} is for segmentation, and this data is for {name}",
                    where="distill.methods",
                )
            if len(classes) == 2 and getattr(method, "standardize", False):
                raise UsageError(
                    "the Z-scores of two logits are the same for every sample",
                    where=f"distill.methods.{method.name}.standardize",
                    fix="set it to false: this data has two classes",
                )
        return
    for where, what in _for_classes(config):
        raise UsageError(f"{what} is for classification, and this data is for {name}", where=where)
    for method in entries:
        if not fits(type(method), name):
            from edgekd.distill.method import METHODS

            known = [m for m in METHODS.names() if fits(METHODS.get(m), name)]
            raise UsageError(
                f"{method.name} is not for {name}",
                where="distill.methods",
                fix=f"methods for {name}: {', '.join(known)}",
            )


def _check_budgets(config: Config, task: str, classes: Sequence[str]) -> None:
    """A budget on the score of another task would only be found unanswered at the end."""
    own = of(task)
    for i, budget in enumerate(config.gate.budgets):
        score = budget.metric.removesuffix("_drop")
        of_classes = budget.metric == "class_recall" and own.name != CLASSIFICATION
        if (
            of_classes
            or (score in SCORES and score != own.metric)
            or (budget.metric == "agreement" and not own.top1)
        ):
            raise UsageError(
                f"{budget.metric} is not of {own.name}",
                where=f"gate.budgets.{i}",
                fix=f"its score is {own.metric}: {own.metric} and {own.metric}_drop",
            )
        if budget.label is not None and budget.label not in classes:
            raise UsageError(
                f"no class is called {budget.label!r}{suggestion(budget.label, classes)}",
                where=f"gate.budgets.{i}",
            )


def _for_classes(config: Config) -> Iterator[tuple[str, str]]:
    from edgekd.config.schema import Transfer
    from edgekd.teachers.teacher import TORCH, kind_of

    if kind_of(config.teacher.model).kind != TORCH:
        yield "teacher.model", f"a teacher of {config.teacher.model.partition(':')[0]}:"
    if config.student.auto:
        yield "student", "student: auto"
    if config.distill.scheme.entry.name not in ("offline", "assistant"):
        yield "distill.scheme", f"scheme {config.distill.scheme.entry.name}"
    if config.distill.transfer.model_copy(update={"share": Transfer().share}) != Transfer():
        yield "distill.transfer", "a transfer set other than a share"
    if config.data.augment.mixup or config.data.augment.cutmix:
        yield "data.augment", "mixup and cutmix"
    if config.export.preprocessing == "fold":
        yield "export.preprocessing", "fold"
    if config.export.output != "logits":
        yield "export.output", config.export.output
    if config.export.ort:
        yield "export.ort", "a file in ORT format"


def fits(method: type[Method], task: str) -> bool:
    """Whether a method says something of this task: what only looks at features does, where it has some."""
    from edgekd.distill.method import FeatureMethod

    place = method.place if issubclass(method, FeatureMethod) else ""
    if task == SEGMENTATION and place in ("penultimate", "blocks"):
        return False
    if method.needs <= {"features"} and not method.labelled:
        return True
    return method.dense if task == SEGMENTATION else method.numbers
