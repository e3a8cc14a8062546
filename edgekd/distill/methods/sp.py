"""Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation", eqs. 1–3 (arXiv 1907.09682)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, method

if TYPE_CHECKING:
    from torch import Tensor


@method("sp", needs={"features"})
class SP(FeatureMethod):
    """‖G_t − G_s‖²_F / n², G the samples' inner products with rows of unit length."""

    place: ClassVar[Literal["last stage"]] = "last stage"
    settles: ClassVar[bool] = True
    weight: float = Field(3000.0, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        import torch

        pairs = self.pairs(student, teacher)
        return torch.stack([(gram(s) - gram(t)).square().mean() for s, t in pairs]).sum()


def gram(f: Tensor) -> Tensor:
    """(n, …) → (n, n), every row of unit length."""
    from torch.nn.functional import normalize

    q = f.flatten(1)
    return normalize(q @ q.T)
