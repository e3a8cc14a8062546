"""Passalis, Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", §3 (ECCV)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, method

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-7


@method("pkt", needs={"features"})
class PKT(FeatureMethod):
    """Mean of p·log(p/q), p and q the rows of cosine affinities (1 + cos)/2 that sum to one."""

    place: ClassVar[Literal["penultimate"]] = "penultimate"
    settles: ClassVar[bool] = True
    weight: float = Field(3e4, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        import torch

        losses = []
        for f_s, f_t in self.pairs(student, teacher):
            q, p = affinities(f_s), affinities(f_t)
            losses.append((p * ((p + _EPSILON) / (q + _EPSILON)).log()).mean())
        return torch.stack(losses).sum()


def affinities(f: Tensor) -> Tensor:
    """(n, …) → (n, n): how likely each sample takes another for its neighbour."""
    from torch.nn.functional import normalize

    x = normalize(f.flatten(1), eps=_EPSILON)
    similar = (x @ x.T + 1) / 2
    return similar / similar.sum(dim=1, keepdim=True)
