"""Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", eq. 3 (arXiv 1412.6550)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, method

if TYPE_CHECKING:
    from torch import Tensor, nn


@method("fitnet", needs={"features"})
class FitNet(FeatureMethod):
    """MSE(r(f_s), f_t): a regressor r maps the student's guided layer to the teacher's hint.

    The paper's two stages, the hint and then distillation, are `alone: EPOCHS` beside kd.
    """

    place: ClassVar[Literal["last stage"]] = "last stage"
    weight: float = Field(100.0, ge=0, allow_inf_nan=False)

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from edgekd.distill.regressors import Trained, regressors

        return Trained(regressors(self.pairs(student, teacher)), self.hint)

    def hint(
        self, r: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """Mean over the pairs, with one regressor each."""
        import torch
        from torch.nn.functional import mse_loss

        from edgekd.distill.regressors import matched

        pairs = self.pairs(student, teacher)
        losses = [
            mse_loss(*matched(r_i(f_s), f_t)) for r_i, (f_s, f_t) in zip(r, pairs, strict=True)
        ]
        return torch.stack(losses).mean()
