"""Zagoruyko, Komodakis 2017, "Paying More Attention to Attention", eq. 2 (arXiv 1612.03928)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, method

if TYPE_CHECKING:
    from torch import Tensor


@method("at", needs={"features"})
class AT(FeatureMethod):
    """Σ over stages of mean (Q_s/‖Q_s‖ − Q_t/‖Q_t‖)², Q = Σ_c f² as a vector over positions."""

    place: ClassVar[Literal["stages"]] = "stages"
    least: ClassVar[int] = 1
    settles: ClassVar[bool] = True
    weight: float = Field(1000.0, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        import torch

        from edgekd.distill.regressors import matched

        pairs = [matched(f_s, f_t) for f_s, f_t in self.pairs(student, teacher)]
        return torch.stack([(attention(s) - attention(t)).square().mean() for s, t in pairs]).sum()


def attention(f: Tensor) -> Tensor:
    """(n, c, h, w) → (n, h·w), of unit length."""
    from torch.nn.functional import normalize

    return normalize(f.square().sum(dim=1).flatten(1))
