"""The training objective: L = alpha · CE(labels) + Σ_k w_k · method_k, each term by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, Method
from edgekd.distill.regressors import TwoStage
from edgekd.distill.taps import PENULTIMATE, Tapped, blocks, pair_stages, penultimate, stages
from edgekd.errors import UsageError
from edgekd.models.resolve import line_of
from edgekd.tasks.task import CLASSIFICATION, Task, of

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset


class Objective:
    """`alpha` weights the `hard` loss to the labels, cross-entropy where none is given; each method
    carries its own weight.

    Methods that look inside the models need `prepare` first. `trained` holds what the losses have
    to learn themselves (regressors): it is optimised and checkpointed with the student.
    """

    # Whether it has terms beside these, of networks that teach each other or themselves.
    more: ClassVar[bool] = False

    def __init__(
        self,
        alpha: float = 1.0,
        methods: tuple[Method, ...] = (),
        hard: HardLoss | None = None,
    ) -> None:
        self.alpha, self.methods = alpha, methods
        self.hard = hard or HardLoss(of(CLASSIFICATION))
        self.losses: dict[str, Loss] = {method.name: method for method in methods}
        self.trained = nn.ModuleDict()

    @property
    def alone(self) -> int:
        """The first epochs that belong to initialisations."""
        return max((method.alone for method in self.methods), default=0)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return bool(self.methods)

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The places in the student that its methods read."""
        return tuple(dict.fromkeys(s for _, s in self._pairs()))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The places in the teacher that the methods read."""
        return tuple(dict.fromkeys(t for t, _ in self._pairs()))

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for method in self.methods:
            if isinstance(method, FeatureMethod):
                yield from method.taps or ()

    def prepare(
        self,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Tensor,
        seed: int,
        population: Tensor | None = None,
    ) -> None:
        """Find taps where none are given, and build the losses' own layers from one batch.

        `population` (samples,) are the classes of all samples, −1 for those that are not trained on.

        Raises UsageError, with the method's key, for taps that do not exist or do not fit each other.
        """
        methods, shapes = [], []
        for key, method in self._keyed():
            with _at(key):
                methods.append(_tapped(method, student, teacher, inputs))
                shapes.append(_shapes(methods[-1], student, teacher, inputs, population))
        self.methods = tuple(methods)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            self.losses = {}
            for (key, method), known in zip(self._keyed(), shapes, strict=True):
                with _at(key):
                    self.losses[method.name] = method.build(*known)
        self.trained = nn.ModuleDict(
            {name: loss for name, loss in self.losses.items() if isinstance(loss, nn.Module)}
        )

    def _keyed(self) -> Iterator[tuple[str, Method]]:
        """The methods and their keys in the configuration."""
        for i, method in enumerate(self.methods):
            yield f"distill.methods.{i}.{method.name}", method

    def try_out(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> None:
        """Compute every method's loss once, also what others are `alone` before.

        Raises UsageError for one that cannot be computed from what passes its taps.
        """
        for key, method in self._keyed():
            loss = self.losses[method.name]
            try:
                if isinstance(loss, TwoStage):
                    loss.initial(student.float(), teacher, labels)
                loss(student.float(), teacher, labels)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                if not isinstance(method, FeatureMethod):
                    raise
                shapes = ", ".join(
                    f"{t} {tuple(teacher.features[t].shape)} → {s} {tuple(student.features[s].shape)}"
                    for t, s in method.taps or ()
                )
                raise UsageError(
                    f"cannot be computed from what passes its taps: {shapes} ({line_of(error)})",
                    where=key,
                    fix="choose other taps",
                ) from None

    def terms(
        self,
        student: Knowledge,
        teacher: Knowledge | None,
        labels: Tensor,
        epoch: int = 0,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted scalar terms of one batch of the (0-based) epoch; their sum is the loss.

        Where samples are mixed, `targets` (n, classes) are the shares of the classes, which the
        cross-entropy is taken to; methods see the `labels` (n,) of the larger ones.

        Methods that are an initialisation (`alone`) have the first epochs for themselves; then they
        are done, or go on as what they were initialised for.
        """
        initial = tuple(m for m in self.methods if epoch < m.alone)
        methods = initial or tuple(m for m in self.methods if m.persists)
        terms: dict[str, Tensor] = {}
        if self.alpha and not initial:
            hard = labels if targets is None else targets
            terms[self.hard.name] = self.alpha * self.hard(student.logits, hard)
        for method in methods:
            assert teacher is not None
            warm = min(1.0, (epoch + 1) / max(1, method.warmup))
            loss_of = self.losses[method.name]
            if method in initial and isinstance(loss_of, TwoStage):
                loss_of = loss_of.initial
            loss = loss_of(student, teacher, labels)
            terms[method.name] = warm * method.weight * loss
        return terms


class HardLoss:
    """The loss to the labels: a task's, with the deviations (outputs,) of labels that are numbers."""

    def __init__(self, task: Task, scale: Tensor | None = None) -> None:
        self.task, self.scale, self.name = task, scale, task.term

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Scalar; `labels` as the task has them."""
        if self.scale is not None:
            self.scale = self.scale.to(outputs.device)
        return self.task.loss(outputs, labels, self.scale)


def hard_loss(dataset: Dataset) -> HardLoss:
    """What is learned from the labels of this data."""
    scale = None if dataset.output is None else torch.tensor(dataset.output.std)
    return HardLoss(of(dataset.task), scale)


def _tapped(method: Method, student: nn.Module, teacher: nn.Module, inputs: Tensor) -> Method:
    """The method with its taps, found automatically where none are given, or where they are by name."""
    if not isinstance(method, FeatureMethod):
        return method
    if method.taps is not None or method.place == "penultimate":
        given = method.taps or [(PENULTIMATE, PENULTIMATE)]
        pairs = [
            (
                penultimate(teacher, inputs) if of_teacher == PENULTIMATE else of_teacher,
                penultimate(student, inputs) if of_student == PENULTIMATE else of_student,
            )
            for of_teacher, of_student in given
        ]
    elif method.place == "blocks":
        pairs = method.pair_blocks(blocks(teacher, inputs), blocks(student, inputs))
    else:
        pairs = pair_stages(stages(teacher, inputs), stages(student, inputs))
        if not pairs:
            raise UsageError(
                f"{method.name} needs feature maps, and one of the models has none",
                where="distill.methods",
                fix="give taps: [[teacher tap, student tap]], or use another method",
            )
        if method.place == "last stage":
            pairs = pairs[-1:]
    return method.model_copy(update={"taps": pairs})


def _shapes(
    method: Method,
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    population: Tensor | None,
) -> tuple[Knowledge, Knowledge]:
    """What passes its taps, of both, for one batch; nothing where it does not look inside."""
    pairs = (method.taps or []) if isinstance(method, FeatureMethod) else []
    known = [
        _knowledge(model, {pair[side] for pair in pairs}, inputs, who) if pairs else _NOTHING
        for side, who, model in ((1, "student", student), (0, "teacher", teacher))
    ]
    return known[0], replace(known[1], population=population)


_NOTHING = Knowledge(torch.empty(0))


def _knowledge(model: nn.Module, taps: set[str], inputs: Tensor, who: str) -> Knowledge:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), Tapped(model, sorted(taps)) as tapped:
            logits, features = tapped(inputs)
    except UsageError as error:
        raise UsageError(f"{who}: {error.what}", fix=error.fix) from None
    finally:
        model.train(was_training)
    return Knowledge(logits, features)


@contextlib.contextmanager
def _at(key: str) -> Iterator[None]:
    """What a user did wrong here is told with this key."""
    try:
        yield
    except UsageError as error:
        raise UsageError(error.what, where=key, fix=error.fix) from None
