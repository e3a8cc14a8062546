"""Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", §2 (arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("kd", needs={"logits"})
class KD(Method):
    """T²·KL(p ‖ q), p and q the teacher's and the student's softmax at temperature T.

    T² keeps the gradient's size independent of T: ∂C/∂z = T·(q − p), (z − v)/N for T → ∞ (eq. 4).
    `standardize` first scales each sample's logits to mean 0 and deviation 1 (Sun et al. 2024,
    "Logit Standardization in Knowledge Distillation", arXiv 2403.01427); where nothing is given, T is 2 and
    the weight 9 then.
    """

    dense: ClassVar[bool] = True
    temperature: float = Field(4.0, gt=0, le=1000)
    standardize: bool = False
    weight: float = Field(0.9, ge=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_z_scores(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("standardize") is True:
            return {"temperature": 2.0, "weight": 9.0, **value}
        return value

    @property
    def every_logit(self) -> bool:
        """Of a Z-score."""
        return self.standardize

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        T = self.temperature
        z, v = student.logits, teacher.logits
        if self.standardize:
            z, v = standardized(z), standardized(v)
        log_p, log_q = (v / T).log_softmax(dim=1), (z / T).log_softmax(dim=1)
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=1)
        return T**2 * kl.mean()


def standardized(z: Tensor) -> Tensor:
    """Each row's Z-score (Sun et al. 2024, eq. 11); logits that are all but the same stay so.

    Of a last layer that starts at zero the gradient would be 10⁶ as large otherwise.
    """
    return (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True).clamp_min(0.01)
