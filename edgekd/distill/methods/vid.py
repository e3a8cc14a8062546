"""Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer", eqs. 4–6.

arXiv 1904.05835.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, method

if TYPE_CHECKING:
    from torch import Tensor, nn

_EPSILON = 1e-5


@method("vid", needs={"features"})
class VID(FeatureMethod):
    """Mean of log σ_c + (f_t − μ(f_s))² / 2σ_c², a Gaussian with one σ per channel of the teacher.

    σ² = log(1 + exp(α_c)) + ε, starting at `initial_variance`; constants are left out.
    """

    place: ClassVar[Literal["stages"]] = "stages"
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    initial_variance: float = Field(5.0, gt=_EPSILON, le=1000)

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        import torch
        from torch import nn

        from edgekd.distill.regressors import Trained, regressors

        pairs = self.pairs(student, teacher)
        # softplus⁻¹ of the initial variance
        alpha = torch.tensor(self.initial_variance - _EPSILON).expm1().log()
        channels = [t.shape[1] if t.ndim == 4 else t.shape[-1] for _, t in pairs]
        parts = regressors(pairs)
        for mean, count in zip(parts, channels, strict=True):
            mean.register_parameter("alpha", nn.Parameter(alpha.repeat(count)))
        return Trained(parts, self.likelihood)

    def likelihood(
        self, parts: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """The negative variational bound, summed over the pairs."""
        import torch
        from torch.nn.functional import softplus

        from edgekd.distill.regressors import matched

        losses = []
        for mu, (f_s, f_t) in zip(parts, self.pairs(student, teacher), strict=True):
            mean, t = matched(mu(f_s), f_t)
            variance = softplus(mu.get_parameter("alpha")) + _EPSILON
            variance = variance[:, None, None] if t.ndim == 4 else variance
            losses.append(((t - mean).square() / variance + variance.log()).mean() / 2)
        return torch.stack(losses).sum()
