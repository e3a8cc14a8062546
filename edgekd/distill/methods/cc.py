"""Peng et al. 2019, "Correlation Congruence for Knowledge Distillation", eqs. 7–11 (arXiv 1904.01802)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, method

if TYPE_CHECKING:
    from torch import Tensor


@method("cc", needs={"features"})
class CC(FeatureMethod):
    """‖K_t − K_s‖²_F / n², K the Gaussian kernel of unit features as a Taylor series of order P.

    k(x, y) = exp(−γ‖x − y‖²) ≈ Σ_{p ≤ P} e^{−2γ} (2γ)^p / p! · (xᵀy)^p.
    The weight of 0.02 in published tables goes with RepDistiller's other formula, which sums over features;
    of this mean over unit vectors 10 gives about as strong a gradient as kd has.
    """

    place: ClassVar[Literal["penultimate"]] = "penultimate"
    weight: float = Field(10.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(0.4, gt=0, le=10)
    order: int = Field(2, ge=1, le=10)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        import torch

        pairs = self.pairs(student, teacher)
        return torch.stack(
            [(self.kernel(s) - self.kernel(t)).square().mean() for s, t in pairs]
        ).sum()

    def kernel(self, f: Tensor) -> Tensor:
        """(n, …) → (n, n)."""
        import torch
        from torch.nn.functional import normalize

        x = normalize(f.flatten(1))
        inner = x @ x.T
        terms = [
            math.exp(-2 * self.gamma) * (2 * self.gamma) ** p / math.factorial(p) * inner**p
            for p in range(self.order + 1)
        ]
        return torch.stack(terms).sum(dim=0)
