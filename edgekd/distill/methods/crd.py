"""Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation", eqs. 9–19.

arXiv 1910.10699.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, method
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-7


@method("crd", needs={"features"})
class CRD(FeatureMethod):
    """−log h(s, t) of the sample itself, −Σ log(1 − h) of K samples of other classes, both ways.

    h(s, t) = e/(e + K/N), e = exp(sᵀt/τ)/Z of unit embeddings with `dim` values, by a linear layer each.
    The K others come from memories of all N training samples, which move by `momentum`; Z is set by
    the first batch to make e a density (Z = N·mean), once for each side.
    """

    place: ClassVar[Literal["penultimate"]] = "penultimate"
    labelled: ClassVar[bool] = True
    divisible: ClassVar[bool] = False  # the memories
    weight: float = Field(0.8, ge=0, allow_inf_nan=False)
    dim: int = Field(128, ge=1, le=4096)
    negatives: int = Field(16384, ge=1, le=1_000_000, description="K")
    temperature: float = Field(0.07, gt=0, description="τ")
    momentum: float = Field(0.5, ge=0, lt=1)

    @field_validator("taps")
    @classmethod
    def _one(cls, value: list[tuple[str, str]] | None) -> list[tuple[str, str]] | None:
        if value is not None and len(value) != 1:
            raise ValueError("crd compares one pair of taps")
        return value

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from edgekd.distill.contrast import Contrast

        ((f_s, f_t),) = self.pairs(student, teacher)
        if teacher.population is None:
            raise UsageError("crd needs the classes of all samples", where="distill.methods")
        return Contrast(
            f_s.flatten(1).shape[1], f_t.flatten(1).shape[1], teacher.population,
            pair=lambda s, t: self.pairs(s, t)[0], dim=self.dim, negatives=self.negatives,
            temperature=self.temperature, momentum=self.momentum,
        )  # fmt: skip


def nce(scores: Tensor, samples: int) -> Tensor:
    """Scores e (n, 1 + K), the sample's own first, with noise 1/N (eq. 17) → mean over the batch."""
    others = scores.shape[1] - 1
    noise = others / samples
    own = (scores[:, 0] / (scores[:, 0] + noise + _EPSILON)).log()
    rest = (noise / (scores[:, 1:] + noise + _EPSILON)).log().sum(dim=1)
    return -(own + rest).mean()
