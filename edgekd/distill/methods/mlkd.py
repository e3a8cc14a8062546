"""Jin, Wang, Lin 2023, "Multi-Level Logit Distillation", CVPR, eqs. 5–9."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("mlkd", needs={"logits"})
class MLKD(Method):
    """Instance, batch and class level, each over all temperatures.

    Instance: T²·KL(p ‖ q). Batch: ‖p pᵀ − q qᵀ‖² / n, how alike samples are. Class:
    ‖pᵀ p − qᵀ q‖² / classes, how classes go together. Without the paper's confidence masks and
    strong augmentation.
    """

    temperatures: list[float] = Field([2.0, 3.0, 4.0, 5.0, 6.0], min_length=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        return sum(
            self.levels(student.logits / T, teacher.logits / T, T) for T in self.temperatures
        )  # type: ignore[return-value]

    def levels(self, z: Tensor, v: Tensor, T: float) -> Tensor:
        """The three terms at one temperature, of logits already divided by it."""
        q, p = z.softmax(dim=1), v.softmax(dim=1)
        n, classes = p.shape
        instance = (p * (v.log_softmax(dim=1) - z.log_softmax(dim=1))).sum(dim=1).mean()
        batch = (p @ p.T - q @ q.T).square().sum() / n
        of_class = (p.T @ p - q.T @ q).square().sum() / classes
        return T**2 * instance + batch + of_class
