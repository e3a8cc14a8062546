"""Huang, Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", §4.

arXiv 1707.01219.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, method

if TYPE_CHECKING:
    from torch import Tensor


@method("nst", needs={"features"})
class NST(FeatureMethod):
    """Squared MMD of the channels' unit activation maps, with the kernel (xᵀy)² (eqs. 3–5)."""

    place: ClassVar[Literal["last stage"]] = "last stage"
    least: ClassVar[int] = 1
    settles: ClassVar[bool] = True
    weight: float = Field(50.0, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        import torch

        from edgekd.distill.regressors import matched

        pairs = [matched(f_s, f_t) for f_s, f_t in self.pairs(student, teacher)]
        return torch.stack([mmd(s, t) for s, t in pairs]).sum()


def mmd(f_s: Tensor, f_t: Tensor) -> Tensor:
    """(n, c_s, h, w), (n, c_t, h, w) → mean over the samples."""
    from torch.nn.functional import normalize

    s, t = normalize(f_s.flatten(2), dim=2), normalize(f_t.flatten(2), dim=2)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
