"""Before hours of training, in seconds: would this distillation teach anything?

Every complaint says what to do. Nothing that training depends on is touched: the student is a copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgekd.config.schema import Distill
from edgekd.distill.method import Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.results import Accuracy

# A term whose gradient is this many times smaller than the largest one does not matter.
_OUTWEIGHED = 100.0
_LARGEST_RATE = {"sgd": 1.0, "adamw": 0.05}


def examine(
    student: nn.Module,
    objective: Objective,
    config: Distill,
    teacher: Accuracy | None,
    inputs: Tensor,
    known: Knowledge,
    labels: Tensor,
) -> list[str]:
    """Complaints about a distillation that is about to start, each in one line.

    `teacher` is its accuracy on the validation split, None where it has no answers there; `inputs`,
    `known` and `labels` are one batch: views, what the teacher says of them, and their classes.
    """
    return [
        *(_about_teacher(teacher) if teacher else ()),
        *_about_answers(known, labels),
        *_about_rate(config),
        *_about_gradients(gradient_norms(student, objective, inputs, known, labels)),
    ]


def gradient_norms(
    student: nn.Module, objective: Objective, inputs: Tensor, known: Knowledge, labels: Tensor
) -> dict[str, float]:
    """‖∂ term / ∂ student's weights‖ of every weighted term, on one batch in training mode."""
    patient = copy.deepcopy(student).train()
    # Warm-up would hide a term: look at the weights it ends with.
    last = max((method.warmup for method in objective.methods), default=0)
    with torch.random.fork_rng(devices=[]), Tapped(patient, objective.student_taps) as tapped:
        answer = Knowledge(*tapped(inputs))
        terms = objective.terms(answer, known, labels, epoch=last)
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
    return norms


def _about_teacher(teacher: Accuracy) -> Iterator[str]:
    chance = 1 / len(teacher.per_class)
    if teacher.interval[0] <= 1.5 * chance:
        yield (
            f"the teacher is right on {teacher.value:.1%} of the validation split, near chance "
            f"({chance:.1%}): check its weights, data.mean and data.std, and the order of the classes"
        )


def _about_answers(known: Knowledge, labels: Tensor) -> Iterator[str]:
    if not known.logits.isfinite().all():
        yield "the teacher gives logits that are not finite: check its weights and inputs"
    elif float(known.logits.std(dim=1).max()) < 1e-6:
        yield "the teacher gives the same logits to every class: check its weights"


def _about_rate(config: Distill) -> Iterator[str]:
    largest = _LARGEST_RATE[config.optimizer]
    if config.learning_rate > largest:
        yield (
            f"learning_rate {config.learning_rate:g} is high for {config.optimizer}: "
            f"{largest / 10:g} is a usual one"
        )


def _about_gradients(norms: dict[str, float]) -> Iterator[str]:
    largest = max(norms, key=lambda name: norms[name])
    for name, norm in norms.items():
        if not math.isfinite(norm):
            yield f"the gradient of {name} is not finite: lower its weight, or check the data"
        elif norm == 0:
            yield f"{name} gives the student no gradient: it teaches nothing; check its weight and taps"
        elif norms[largest] > _OUTWEIGHED * norm:
            factor = float(f"{norms[largest] / norm:.1g}")
            yield (
                f"{name} is outweighed: its gradient is {factor:g} times smaller than that of {largest}; "
                f"raise its weight, or lower the other's"
            )
