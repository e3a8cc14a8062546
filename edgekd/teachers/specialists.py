"""A generalist and specialists for classes that it confuses: Hinton, Vinyals, Dean 2015, §5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.distill.method import Kind, Knowledge
from edgekd.teachers.teacher import Teacher, Transparency

Classes = tuple[int, ...]


def confusable(
    logits: Tensor, count: int, size: int, *, temperature: float, seed: int
) -> list[Classes]:
    """`count` sets of `size` classes that are often predicted together, each set sorted, none twice.

    K-means on the columns of the covariance of the generalist's predictions softmax(z/T), `logits`
    (n, classes), each class by its own deviation (§5.2); a set is what lies nearest to a centre. Sets
    may overlap; there may be fewer than `count`.
    """
    from sklearn.cluster import KMeans

    columns = correlation((logits.double() / temperature).softmax(1))
    count = min(count, len(columns))
    found = KMeans(count, n_init=20, random_state=seed).fit(columns)
    sets = []
    for centre in found.cluster_centers_:
        distances = np.linalg.norm(columns - centre, axis=1)
        sets.append(tuple(sorted(int(c) for c in np.argsort(distances, kind="stable")[:size])))
    return list(dict.fromkeys(sets))


def correlation(p: Tensor) -> np.ndarray:
    """The covariance (classes, classes) of predictions (n, classes), in units of their deviations."""
    covariance = np.atleast_2d(np.cov(p.numpy().T))
    deviation = np.sqrt(np.maximum(covariance.diagonal(), 1e-24))
    scaled: np.ndarray = covariance / np.outer(deviation, deviation)
    return scaled


def grouped(logits: Tensor, classes: Classes) -> Tensor:
    """Logits (n, k + 1) of k classes and of the dustbin, the log-sum of all the others'."""
    others = [c for c in range(logits.shape[1]) if c not in classes]
    return torch.cat([logits[:, list(classes)], logits[:, others].logsumexp(1, keepdim=True)], 1)


class Specialist(nn.Module):
    """A network that is asked for its own `classes` and a dustbin class only.

    With the generalist's weights it starts as the generalist: its dustbin has the sum of the
    probabilities of all other classes.
    """

    def __init__(self, model: nn.Module, classes: Classes) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, len(classes) + 1), the dustbin's last."""
        return grouped(self.model(x), self.classes)


@dataclass(frozen=True)
class Expert:
    """A trained specialist. `oversampled`: how many times more of its classes it saw than there are,
    against the others; the log of it is added to the dustbin's logit (§5.3).
    """

    teacher: Teacher
    classes: Classes
    oversampled: float


class Specialists(Teacher):
    """The generalist, and those experts that have one of its `top` most probable classes."""

    transparency: ClassVar[Transparency] = "gray-box"
    provides: frozenset[Kind] = frozenset({"logits", "probabilities", "labels"})

    def __init__(self, generalist: Teacher, experts: Sequence[Expert], top: int = 1) -> None:
        self.generalist, self.experts, self.top = generalist, tuple(experts), top

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """Log q (n, classes), the full distribution nearest to all that are asked."""
        z = self.generalist.knowledge(inputs, indices, view).logits
        answers = []
        for expert in self.experts:
            logits = expert.teacher.knowledge(inputs, indices, view).logits.double()
            shift = torch.zeros(logits.shape[1], dtype=torch.float64)
            shift[-1] = float(np.log(expert.oversampled))
            answers.append((logits + shift.to(logits.device)).softmax(1))
        sets = [expert.classes for expert in self.experts]
        q = combine(z.double().softmax(1), answers, sets, relevant(z, sets, self.top))
        return Knowledge(q.clamp_min(1e-30).log().to(z.dtype))


def relevant(logits: Tensor, sets: Sequence[Classes], top: int) -> Tensor:
    """(n, sets) bool: which have one of the `top` most probable classes in them."""
    best = logits.topk(min(top, logits.shape[1]), dim=1).indices
    columns = [torch.isin(best, torch.tensor(s, device=best.device)).any(1) for s in sets]
    return torch.stack(columns, 1) if columns else best.new_zeros(len(best), 0).bool()


def combine(
    generalist: Tensor,
    specialists: Sequence[Tensor],
    sets: Sequence[Classes],
    active: Tensor,
    tolerance: float = 1e-10,
) -> Tensor:
    """The q (n, classes) that minimises KL(p_g ‖ q) + Σ_active KL(p_m ‖ q), eq. 5.

    p_m (n, k + 1) is over the classes of a set and a dustbin, whose q is the sum of q over the rest.
    The objective is convex, and the negative log-likelihood of counts some of which are of a group
    only: expectation-maximisation (Dempster 1977, §4.1) falls to its minimum without a step size.
    """
    q, weight = generalist, 1 + active.to(generalist.dtype).sum(1, keepdim=True)
    rests = [[c for c in range(q.shape[1]) if c not in s] for s in sets]
    # What is known of single classes does not change; dustbins are shared out anew, by q.
    fixed = generalist.clone()
    for m, (p, s) in enumerate(zip(specialists, sets, strict=True)):
        fixed[:, list(s)] += active[:, m, None] * p[:, :-1]
    for _ in range(10_000):
        total = fixed.clone()
        for m, (p, rest) in enumerate(zip(specialists, rests, strict=True)):
            share = q[:, rest] / q[:, rest].sum(1, keepdim=True).clamp_min(1e-300)
            total[:, rest] += active[:, m, None] * p[:, -1:] * share
        last, q = q, total / weight
        if float((q - last).abs().max()) < tolerance:
            break
    return q
