"""Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher" (DIST, arXiv 2205.10536)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("dist", needs={"logits"})
class DIST(Method):
    """τ²·(β·(1 − ρ_rows) + γ·(1 − ρ_columns)), ρ Pearson's correlation of the softmaxes (eq. 9-10).

    Rows are relations between classes within a sample, columns between samples within a class.
    β = γ = 2 and τ = 4 for small data, 1, 1, 1 for ImageNet; the hard labels at weight 1.
    """

    labels_weight: ClassVar[float] = 1.0
    settles: ClassVar[bool] = True
    temperature: float = Field(4.0, gt=0, le=1000)
    beta: float = Field(2.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(2.0, ge=0, allow_inf_nan=False)

    @property
    def every_logit(self) -> bool:
        """Of a correlation."""
        return True

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        tau = self.temperature
        q, p = (student.logits / tau).softmax(dim=1), (teacher.logits / tau).softmax(dim=1)
        inter = 1 - pearson(q, p).mean()
        intra = 1 - pearson(q.T, p.T).mean()
        return tau**2 * (self.beta * inter + self.gamma * intra)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """ρ of each pair of rows; 0 where a row is constant."""
    (a, length_a), (b, length_b) = centred(a), centred(b)
    correlation: Tensor = (a * b).sum(dim=1) / (length_a * length_b)
    return correlation


def centred(a: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from each row's mean, and their length: of probabilities that differ by 1 % at least.

    A student whose last layer starts at zero says the same of all, and its gradient would be 10⁶ as large.
    """
    mean = a.mean(dim=1, keepdim=True)
    least = 0.01 * mean.detach().abs().squeeze(1) * a.shape[1] ** 0.5
    a = a - mean
    return a, a.norm(dim=1).maximum(least).clamp_min(1e-8)
