"""Jin, Wang, Lin 2023, "Multi-Level Logit Distillation", CVPR, eqs. 5–9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("mlkd", needs={"logits"})
class MLKD(Method):
    """Instance, batch and class level, each over all temperatures.

    Instance: T²·KL(p ‖ q). Batch: r·‖p pᵀ − q qᵀ‖² / n, how alike samples are. Class:
    r²·‖pᵀ p − qᵀ q‖² / classes, how classes go together. Both are sums over a batch: r = 64·classes / 100·n
    is 1 at the 64 samples and 100 classes that the authors weigh them for, and keeps their share where
    there are others. Of samples only those count that the teacher is
    least sure of (max p), and of classes those that it sees least of in the batch (Σ p): the
    `confidence` quantile of each, half of them in the authors' code; 1: all. Without their second,
    strongly augmented view.
    """

    temperatures: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        [2.0, 3.0, 4.0, 5.0, 6.0], min_length=1
    )
    confidence: float = Field(0.5, gt=0, le=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)

    @property
    def every_logit(self) -> bool:
        """Of high temperatures, and of correlations of classes."""
        return True

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        p = teacher.logits.softmax(dim=1)
        samples, classes = self.lowest(p.max(dim=1).values), self.lowest(p.sum(dim=0))
        return sum(
            self.levels(student.logits / T, teacher.logits / T, T, samples, classes)
            for T in self.temperatures
        )  # type: ignore[return-value]

    def lowest(self, confidence: Tensor) -> Tensor:
        """1 for those up to the quantile, 0 for the others."""
        return (confidence <= confidence.quantile(self.confidence)).to(confidence.dtype)

    def levels(self, z: Tensor, v: Tensor, T: float, samples: Tensor, classes: Tensor) -> Tensor:
        """The three terms at one temperature, of logits already divided by it."""
        q, p = z.softmax(dim=1), v.softmax(dim=1)
        kl = (p * (v.log_softmax(dim=1) - z.log_softmax(dim=1))).sum(dim=1)
        r = 64 / len(z) * z.shape[1] / 100
        of_samples = r * (p @ p.T - q @ q.T).square().sum(dim=1)
        of_classes = r**2 * (p.T @ p - q.T @ q).square().sum(dim=1)
        return (
            T**2 * (samples * kl).mean()
            + (samples * of_samples).mean()
            + (classes * of_classes).mean()
        )
