"""Several teachers as one: the mean of their distributions (Hinton, Vinyals, Dean 2015, §1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from edgekd.distill.method import Kind, Knowledge
from edgekd.teachers.teacher import Teacher, Transparency

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgekd.data.views import Views
    from edgekd.pipeline.stages import Context

Mean = Literal["arithmetic", "geometric"]
# The logit of a label beside 0 for the others: e⁻¹⁶ ≈ 10⁻⁷, the least probability that records hold.
_CERTAIN = 16.0


class Ensemble(Teacher):
    """Members of any kind; `weights`, one each, are divided by their sum. Of labels alone they are certain.

    The arithmetic mean is Σ w_k softmax(z_k/T) at T = `temperature`: that of a distillation makes its
    soft targets the mean of the members'. The geometric mean Π softmax(z_k/T)^w_k, normalised, is
    softmax(Σ w_k z_k / T) at every T.
    """

    transparency: ClassVar[Transparency] = "gray-box"
    provides: frozenset[Kind] = frozenset({"logits", "probabilities", "labels"})

    def __init__(
        self,
        members: Sequence[Teacher],
        mean: Mean = "arithmetic",
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.members, self.mean, self.temperature = tuple(members), mean, temperature
        given = tuple(weights) if weights is not None else (1.0,) * len(self.members)
        self.weights = tuple(weight / sum(given) for weight in given)
        self.sees_views = all(member.sees_views for member in self.members)

    def prepare(self, context: Context, views: Views, *, leads: bool = True) -> None:
        """Every member."""
        for member in self.members:
            member.prepare(context, views, leads=leads)

    def known(self, indices: np.ndarray) -> np.ndarray:
        """Samples that every member has an answer to."""
        for member in self.members:
            indices = member.known(indices)
        return indices

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """Logits (n, classes) whose softmax at T is the mean."""
        answers = [
            m.knowledge(inputs, indices, view).logits
            * (1 if "logits" in m.provides else _CERTAIN * self.temperature)
            for m in self.members
        ]
        return Knowledge(mean_logits(answers, self.weights, self.mean, self.temperature))


def mean_logits(
    logits: Sequence[Tensor], weights: Sequence[float], mean: Mean, temperature: float = 1.0
) -> Tensor:
    """(n, classes) whose softmax at T is the weighted mean of the members' at T; weights add up to 1."""
    import math

    import torch

    if mean == "geometric":
        return torch.stack([w * z for w, z in zip(weights, logits, strict=True)]).sum(0)
    T = temperature
    shares = [
        (z / T).log_softmax(1) + math.log(w) for w, z in zip(weights, logits, strict=True) if w > 0
    ]
    return T * torch.stack(shares).logsumexp(0)
