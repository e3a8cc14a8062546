"""Heo, Lee, Yun, Choi 2019, "Knowledge Transfer via Distillation of Activation Boundaries", eq. 3.

arXiv 1811.03233.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import ALONE, FeatureMethod, Knowledge, Loss, method

if TYPE_CHECKING:
    from torch import Tensor, nn


@method("ab", needs={"features"})
class AB(FeatureMethod):
    """Whether each neuron of the teacher is active, as a squared hinge on the student's r(f_s).

    Where the teacher is above 0 the student is pushed above the margin μ, elsewhere below −μ.
    The paper taps what enters the last ReLU of each stage and uses the loss alone at first
    (`alone: 30`), as an initialisation; stages with smaller maps count half of the next.
    """

    place: ClassVar[Literal["stages"]] = "stages"
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    margin: float = Field(1.0, gt=0, description="μ")
    alone: int = Field(30, ge=0, description=ALONE)

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from edgekd.distill.regressors import Trained, regressors

        return Trained(regressors(self.pairs(student, teacher)), self.boundaries)

    def boundaries(
        self, r: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """The sum over the stages, the last with weight 1, each before it with half the next one's."""
        import torch

        from edgekd.distill.regressors import matched

        pairs = [
            matched(r_i(f_s), f_t)
            for r_i, (f_s, f_t) in zip(r, self.pairs(student, teacher), strict=True)
        ]
        losses = [
            hinge(s, t, self.margin) / 2**depth for depth, (s, t) in enumerate(reversed(pairs))
        ]
        return torch.stack(losses).sum()


def hinge(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """Mean of (μ − s)₊² where t > 0 and of (s + μ)₊² elsewhere."""
    sign = (t > 0).to(s.dtype) * 2 - 1
    return (margin - sign * s).relu().square().mean()
