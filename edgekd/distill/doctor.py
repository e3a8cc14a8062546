"""Before hours of training, in seconds: would this distillation teach anything?

Every complaint says what to do. Nothing that training depends on is touched: the student is a copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.config.schema import Training
from edgekd.distill.method import Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.results import Accuracy

# A term whose gradient is this many times smaller than the largest one does not matter.
_OUTWEIGHED = 100.0
# How many times more is no matter of one that `settles`.
_SETTLING = 100.0
# How many times smaller a suggested weight leaves it.
_BALANCED = 10.0
_LARGEST_RATE = {"sgd": 1.0, "adamw": 0.05}
_SMALLEST_RATE = {"sgd": 1e-5, "adamw": 1e-7}


@dataclass(frozen=True)
class Diagnosis:
    """Complaints, each in one line; and ‖∂ term / ∂ weights‖ by term: of an initialisation at the start, of
    the others when every warm-up is over.
    """

    complaints: list[str]
    norms: dict[str, float]


def examine(
    student: nn.Module,
    objective: Objective,
    config: Training,
    teacher: Accuracy | None,
    inputs: Tensor,
    known: Knowledge | None,
    labels: Tensor,
    *,
    again: Knowledge | None = None,
    stored: Knowledge | None = None,
    expected: Knowledge | None = None,
) -> Diagnosis:
    """Look at a distillation that is about to start.

    `teacher` is its accuracy on samples of the validation split, None where it has no answers there;
    `inputs`, `known` and `labels` are one batch: views, what the teacher says of them (None where there is
    none, and networks teach each other or themselves), and their classes. `again`
    is what it says when it is asked about the first of them alone, `stored` what the knowledge store
    says of all of them, None where it says nothing yet, `expected` what it should say where it keeps less
    than `known`.
    """
    phases = [
        gradient_norms(student, objective, inputs, known, labels, epoch)
        for epoch in _phases(objective)
    ]
    complaints = [
        *(_about_teacher(teacher) if teacher else ()),
        *(_about_known(student, objective, inputs, known, labels) if known else ()),
        *(_about_mode(known, again) if known and again else ()),
        *(_about_store(expected or known, stored) if known and stored else ()),
        *_about_rate(config),
        *_about_epochs(config, objective),
        *(
            complaint
            for norms in phases
            for complaint in _about_gradients(norms, objective, bool((labels >= 0).any()))
        ),
    ]
    return Diagnosis(complaints, {**phases[0], **phases[-1]})


def _phases(objective: Objective) -> list[int]:
    """An epoch of the initialisation, if any, and one when every warm-up is over."""
    # A loss that at first prepares its own parts gives the student nothing then, as it should.
    initial = [m.alone for m in objective.methods if m.alone and not m.persists]
    last = max([m.warmup for m in objective.methods] + [m.alone for m in objective.methods] + [0])
    return [0, last] if initial else [last]


def gradient_line(norms: dict[str, float]) -> str:
    """One line: how strongly each weighted term pulls at the student."""
    return "gradients: " + ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())


def gradient_norms(
    student: nn.Module,
    objective: Objective,
    inputs: Tensor,
    known: Knowledge | None,
    labels: Tensor,
    epoch: int | None = None,
) -> dict[str, float]:
    """‖∂ term / ∂ student's weights‖ of every weighted term, on one batch in training mode.

    Of the terms of `epoch`; None: when every warm-up is over, which would hide a term.
    """
    patient = copy.deepcopy(student).train()
    epoch = _phases(objective)[-1] if epoch is None else epoch
    learned = {k: v.clone() for k, v in objective.trained.state_dict().items()}
    with torch.random.fork_rng(devices=[]), Tapped(patient, objective.student_taps) as tapped:
        answer = Knowledge(*tapped(inputs))
        terms = objective.terms(answer, known, labels, epoch=epoch)
        parameters = [p for p in patient.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            gradients = (
                torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
                if term.requires_grad
                else ()
            )
            squares = [float(g.double().square().sum()) for g in gradients if g is not None]
            norms[name] = math.sqrt(sum(squares))
    objective.trained.load_state_dict(learned)
    return norms


def _about_teacher(teacher: Accuracy) -> Iterator[str]:
    if teacher.metric != "accuracy":
        if teacher.interval[0] <= 0.05:
            yield (
                f"the teacher's {teacher.metric} on {teacher.total} validation samples is "
                f"{teacher.value:.1%}, as of one that says the same of every sample: check its weights, "
                "data.mean and data.std"
            )
        return
    chance = 1 / len(teacher.per_class)
    if teacher.interval[0] <= chance + min(chance / 2, 0.05):
        yield (
            f"the teacher is right on {teacher.value:.1%} of {teacher.total} validation samples, near "
            f"chance ({chance:.1%}): check its weights, data.mean and data.std, and the order of the classes"
        )


def _about_known(
    student: nn.Module, objective: Objective, inputs: Tensor, known: Knowledge, labels: Tensor
) -> Iterator[str]:
    yield from _about_answers(known, objective.hard.task.top1)
    if labels.ndim == 1:
        yield from _about_student(student, inputs, known, labels)


def _about_answers(known: Knowledge, classes: bool) -> Iterator[str]:
    if not known.logits.isfinite().all():
        yield "the teacher gives logits that are not finite: check its weights and inputs"
    elif classes and float(known.logits.std(dim=1).max()) < 1e-6:
        yield "the teacher gives the same logits to every class: check its weights"


def _about_mode(known: Knowledge, again: Knowledge) -> Iterator[str]:
    """In evaluation mode an answer depends on the sample alone: no dropout, no batch statistics."""
    first = known.logits[: len(again.logits)].float()
    if (first - again.logits.float()).abs().max() > 0.05 * first.std():
        yield (
            "the teacher says something else of the same samples when it is asked again: it is not in "
            "evaluation mode, or draws random numbers; call .eval() in its factory"
        )


def _about_store(expected: Knowledge, stored: Knowledge) -> Iterator[str]:
    logits = expected.logits.float()
    if (logits - stored.logits.float()).norm() > 0.1 * logits.norm():
        yield (
            "the knowledge store says something else than the teacher does of the same views: check it "
            "with `edgekd knowledge verify`, or delete it with `edgekd knowledge prune --all`"
        )


@torch.no_grad()
def _about_student(
    student: nn.Module, inputs: Tensor, known: Knowledge, labels: Tensor
) -> Iterator[str]:
    """Of what only one of them gets right, the student should not have clearly more (McNemar)."""
    right_s = copy.deepcopy(student).eval()(inputs).argmax(1) == labels
    right_t = known.logits.argmax(1) == labels
    wins, losses = int((right_s & ~right_t).sum()), int((right_t & ~right_s).sum())
    if wins - losses > 2 * math.sqrt(wins + losses):
        yield (
            f"the student already beats the teacher ({right_s.float().mean():.0%} of a batch right, "
            f"the teacher {right_t.float().mean():.0%}): check the teacher's weights, or train without it"
        )


def _about_rate(config: Training) -> Iterator[str]:
    largest = _LARGEST_RATE[config.optimizer]
    if config.learning_rate > largest:
        yield (
            f"learning_rate {config.learning_rate:g} is high for {config.optimizer}: "
            f"{largest / 10:g} is a usual one"
        )
    elif config.learning_rate < _SMALLEST_RATE[config.optimizer]:
        yield (
            f"learning_rate {config.learning_rate:g} is so low for {config.optimizer} that nothing would be "
            f"learned: {largest / 10:g} is a usual one"
        )


def _about_epochs(config: Training, objective: Objective) -> Iterator[str]:
    for method in objective.methods:
        if method.warmup > config.epochs:
            yield (
                f"the weight of {method.name} rises over {method.warmup} epochs, and there are "
                f"{config.epochs}: it ends at {config.epochs / method.warmup:.0%} of it; lower "
                f"{method.name}.warmup, or raise epochs"
            )
        left = config.epochs - method.alone
        if method.alone > 3 * left:
            yield (
                f"{method.name} is alone for {method.alone} of {config.epochs} epochs, which leaves {left} "
                f"for the rest; raise epochs, or lower {method.name}.alone"
            )


def _about_gradients(
    norms: dict[str, float], objective: Objective, labelled: bool = True
) -> Iterator[str]:
    weights = {method.name: method.weight for method in objective.methods}
    # Beside features, soft targets that count say what the labels say.
    soft = [m.name for m in objective.methods if m.needs == {"logits"} and m.name in norms]
    # What a scheme adds is small at first and grows with what its networks know.
    configured = {n: v for n, v in norms.items() if n in weights or n == objective.hard.name}
    largest = max(configured, key=lambda name: configured[name], default="")
    settling = any(method.settles for method in objective.methods if method.name == largest)
    # Soft targets that outweigh the labels say what these say.
    more = _OUTWEIGHED * (_SETTLING if settling or largest in soft else 1)
    told = any(norms[largest] <= more * norms[m] for m in soft if m != largest)
    for name, norm in norms.items():
        if not math.isfinite(norm):
            yield f"the gradient of {name} is not finite: lower its weight, or check the data"
        elif norm == 0 and name not in weights and not labelled:
            continue  # what would learn from labels
        elif norm == 0:
            yield f"{name} gives the student no gradient: it teaches nothing; check its weight and taps"
        elif name not in configured or norms[largest] <= more * norm:
            continue
        elif name in weights or not told:
            factor = float(f"{norms[largest] / norm:.1g}")
            share = _BALANCED * (_SETTLING if settling else 1) / factor
            if name not in weights:
                # Of the labels: alpha is a share.
                advice = f"try {largest}.weight: {_short(weights[largest] * share)}"
            else:
                advice = f"try {name}.weight: {_short(weights[name] / share)}, or lower the other's"
            yield (
                f"{name} is outweighed at the start: its gradient is {factor:g} times smaller than that "
                f"of {largest}; {advice}"
            )


def _short(value: float) -> str:
    """Two digits, without an exponent where people would write none."""
    return f"{float(f'{value:.2g}'):g}"
