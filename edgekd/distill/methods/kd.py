"""Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), §2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("kd", needs={"logits"})
class KD(Method):
    """T²·KL(p ‖ q), p and q the teacher's and the student's softmax at temperature T.

    T² keeps the gradient's size independent of T: ∂C/∂z = T·(q − p) ≈ (z − v)/N for large T (eq. 4).
    """

    temperature: float = Field(4.0, gt=0, le=1000)
    weight: float = Field(0.9, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        T = self.temperature
        log_p = (teacher.logits / T).log_softmax(dim=1)
        log_q = (student.logits / T).log_softmax(dim=1)
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=1)
        return T**2 * kl.mean()
