"""Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction", eq. 4 (arXiv 2011.13256)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("cwd", needs={"logits"})
class CWD(Method):
    """(T²/C)·Σ_c KL(φ(y^T_c) ‖ φ(y^S_c)): where in the picture a class is, not which class a pixel has.

    φ is the softmax at temperature T over all positions of one channel of logits (n, C, height, width).
    The paper: T = 4 and weight 3 on logits.
    """

    dense: ClassVar[bool] = True
    maps: ClassVar[bool] = True
    temperature: float = Field(4.0, gt=0, le=1000)
    labels_weight: ClassVar[float] = 1.0
    weight: float = Field(3.0, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        T, C = self.temperature, student.logits.shape[1]
        log_s = (student.logits.flatten(2) / T).log_softmax(dim=2)
        log_t = (teacher.logits.flatten(2) / T).log_softmax(dim=2)
        kl = (log_t.exp() * (log_t - log_s)).sum(dim=(1, 2))
        return T**2 / C * kl.mean()
