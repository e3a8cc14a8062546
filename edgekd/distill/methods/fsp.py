"""Yim, Joo, Bae, Kim 2017, "A Gift from Knowledge Distillation", CVPR, eqs. 1–2."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import ALONE, FeatureMethod, Knowledge, Loss, method

if TYPE_CHECKING:
    from torch import Tensor, nn


@method("fsp", needs={"features"})
class FSP(FeatureMethod):
    """‖G_s − G_t‖² of the flow between stages, G = F₁ᵀF₂ / (h·w): how features turn into later ones.

    Regressors bring the student to the teacher's channels, where the paper has models of equal widths.
    The paper uses it alone at first (`alone: 30`), as an initialisation.
    """

    place: ClassVar[Literal["stages"]] = "stages"
    least: ClassVar[int] = 2
    weight: float = Field(50.0, ge=0, allow_inf_nan=False)
    alone: int = Field(30, ge=0, description=ALONE)

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from edgekd.distill.regressors import Trained, regressors

        super().build(student, teacher)
        pairs = self.pairs(student, teacher)
        return Trained(regressors(pairs), self.flow)

    def flow(
        self, r: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """Mean over the consecutive pairs of stages."""
        import torch

        maps = [
            (r_i(f_s), f_t) for r_i, (f_s, f_t) in zip(r, self.pairs(student, teacher), strict=True)
        ]
        losses = [
            (fsp(s_1, s_2) - fsp(t_1, t_2)).square().mean()
            for (s_1, t_1), (s_2, t_2) in itertools.pairwise(maps)
        ]
        return torch.stack(losses).mean()


def fsp(f_1: Tensor, f_2: Tensor) -> Tensor:
    """Maps (n, a, h, w) and (n, b, h', w') → (n, a, b), at the smaller of both sizes."""
    from edgekd.distill.regressors import matched

    a, b = (f.flatten(2) for f in matched(f_1, f_2))
    return a @ b.transpose(1, 2) / a.shape[2]
