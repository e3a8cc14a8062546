"""Hinton, Vinyals, Dean 2015, §2.1: matching logits, the limit of distillation for T → ∞."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("logits", needs={"logits"})
class Logits(Method):
    """½·mean (z − v)² of the zero-mean logits; its gradient is eq. 4's (z − v)/N."""

    dense: ClassVar[bool] = True

    @property
    def every_logit(self) -> bool:
        """Each counts the same."""
        return True

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        z = student.logits - student.logits.mean(dim=1, keepdim=True)
        v = teacher.logits - teacher.logits.mean(dim=1, keepdim=True)
        return (z - v).square().mean() / 2
