"""Zhao et al. 2022, "Decoupled Knowledge Distillation" (arXiv 2203.08679)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("dkd", needs={"logits"})
class DKD(Method):
    """T²·(α·TCKD + β·NCKD), eq. 7: the target class against the rest, the rest among themselves.

    The paper keeps the hard labels at weight 1 (`distill.alpha`), takes β from 2 to 8 by
    architecture, and warms the term up over 20 epochs.
    """

    labelled: ClassVar[bool] = True
    labels_weight: ClassVar[float] = 1.0
    temperature: float = Field(4.0, gt=0, le=1000)
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False)
    beta: float = Field(8.0, ge=0, allow_inf_nan=False)
    warmup: int = Field(20, ge=0)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        T = self.temperature
        q_t, log_q_hat = decoupled(student.logits / T, labels)
        p_t, log_p_hat = decoupled(teacher.logits / T, labels)
        # b = (p_t, 1 − p_t) against (q_t, 1 − q_t), each as logarithms
        tckd = sum((b.exp() * (b - c)).mean() for b, c in zip(p_t, q_t, strict=True))
        nckd = (log_p_hat.exp() * (log_p_hat - log_q_hat)).sum(dim=1).mean()
        return T**2 * (self.alpha * tckd + self.beta * nckd)


def decoupled(z: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """(log p_t, log(1 − p_t)), each (n,), and log p̂ (n, classes − 1) without the target class."""
    import torch

    n, classes = z.shape
    target = labels.unsqueeze(1)
    others = torch.arange(classes - 1, device=z.device).expand(n, -1)
    others = others + (others >= target)
    z_target, z_rest = z.gather(1, target).squeeze(1), z.gather(1, others)
    log_total, log_rest = z.logsumexp(dim=1), z_rest.logsumexp(dim=1)
    # 1 − p_t as the sum of the others: it stays exact where p_t is nearly 1.
    return (z_target - log_total, log_rest - log_total), z_rest.log_softmax(dim=1)
