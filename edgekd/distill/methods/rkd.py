"""Park et al. 2019, "Relational Knowledge Distillation", eqs. 4–9 (arXiv 1904.05068)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, method

if TYPE_CHECKING:
    from torch import Tensor


@method("rkd", needs={"features"})
class RKD(FeatureMethod):
    """distance · l(ψ_D) + angle · l(ψ_A), l the smooth L1 of student's and teacher's potentials."""

    place: ClassVar[Literal["penultimate"]] = "penultimate"
    settles: ClassVar[bool] = True
    distance: float = Field(25.0, ge=0, allow_inf_nan=False)
    angle: float = Field(50.0, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import smooth_l1_loss

        losses = []
        for f_s, f_t in self.pairs(student, teacher):
            s, t = f_s.flatten(1), f_t.flatten(1)
            losses.append(
                self.distance * smooth_l1_loss(distances(s), distances(t))
                + self.angle * smooth_l1_loss(angles(s), angles(t))
            )
        return torch.stack(losses).sum()


def distances(f: Tensor) -> Tensor:
    """ψ_D: (n, d) → (n, n) Euclidean distances over their mean (eq. 5)."""
    squares = (f[:, None] - f[None]).square().sum(dim=2)
    # The root has no gradient at the diagonal's zeros.
    apart = squares > 0
    d = (squares + ~apart * 1e-12).sqrt() * apart
    count = apart.sum()
    mean = (d.sum() + (count == 0)) / count.clamp(min=1)  # 1 where all are equal
    return d / mean


def angles(f: Tensor) -> Tensor:
    """ψ_A: (n, d) → (n, n, n), cos of the angle at the first index (eq. 7)."""
    from torch.nn.functional import normalize

    e = normalize(f[None] - f[:, None], dim=2)
    return e @ e.transpose(1, 2)
