"""Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding".

Equations 7 to 9 (arXiv 1909.10351).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, Pair, method
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SCORES, _INPUT = ":scores", ":input"


@method("tinybert", needs={"features"})
class TinyBert(FeatureMethod):
    """Σ_m MSE(H_s W_h, H_t) + attention · MSE(A_s, A_t), and MSE(E_s W_e, E_t); padding left out.

    A are the scores before the softmax, of every head where both models have as many, else their mean;
    H the tokens behind block m and the teacher's block g(m), E those before the first one. Taps say
    which is which: `:scores`, anything else, and the first pair of `:input`.
    """

    place: ClassVar[Literal["blocks"]] = "blocks"
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    attention: float = Field(1.0, ge=0, allow_inf_nan=False, description="Weight of the scores.")
    layers: list[int] | None = Field(
        None,
        description="The teacher's block for every block of the student, from 0; null: evenly, the "
        "last for the last.",
    )

    def pair_blocks(self, teacher: dict[str, str], student: dict[str, str]) -> list[Pair]:
        if not teacher or not student:
            raise UsageError(
                f"{self.name} is for transformers of two blocks or more, which the "
                f"{'student' if teacher else 'teacher'} is not",
                where="distill.methods",
                fix="use another method, or give taps: [[teacher tap, student tap]]",
            )
        theirs, own = list(teacher), list(student)
        chosen = self.layers or [
            -(-len(theirs) * m // len(own)) - 1 for m in range(1, len(own) + 1)
        ]
        if len(chosen) != len(own) or not all(0 <= layer < len(theirs) for layer in chosen):
            raise UsageError(
                f"layers {chosen} should be {len(own)} of the teacher's blocks 0 to {len(theirs) - 1}",
                where=f"distill.methods {self.name}",
            )
        pairs = [(f"{theirs[0]}{_INPUT}", f"{own[0]}{_INPUT}")]
        for path, layer in zip(own, chosen, strict=True):
            pairs.append((teacher[theirs[layer]], student[path]))
            if self.attention:
                pairs.append((f"{theirs[layer]}{_SCORES}", f"{path}{_SCORES}"))
        return pairs

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from torch import nn

        from edgekd.distill.regressors import Trained, regressor

        for (of_teacher, of_student), (s, t) in zip(
            self.taps or (), self.pairs(student, teacher), strict=True
        ):
            if s.ndim != t.ndim or _places(s) != _places(t):
                raise UsageError(
                    f"tinybert compares place by place; {of_teacher} gives {tuple(t.shape)} and "
                    f"{of_student} {tuple(s.shape)}",
                    where="distill.methods",
                    fix="choose other taps, or another method",
                )

        def mapping(of_inputs: bool) -> nn.Module:
            found = [
                pair
                for (tap, _), pair in zip(
                    self.taps or (), self.pairs(student, teacher), strict=True
                )
                if not tap.endswith(_SCORES) and tap.endswith(_INPUT) == of_inputs
            ]
            return regressor(*found[0]) if found else nn.Identity()

        return Trained(nn.ModuleList([mapping(False), mapping(True)]), self.layer_loss)

    def layer_loss(
        self, w: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """The sum over the pairs; W_h is one for all blocks, as the authors' is."""
        import torch

        hidden, embedding = w
        terms = []
        for (tap, _), (s, t) in zip(self.taps or (), self.pairs(student, teacher), strict=True):
            if tap.endswith(_SCORES):
                alike = s.shape[1] == t.shape[1]
                a = (s, t) if alike else (s.mean(1, keepdim=True), t.mean(1, keepdim=True))
                terms.append(self.attention * masked_mse(*a, _between(teacher.mask)))
            else:
                mapped = (embedding if tap.endswith(_INPUT) else hidden)(s)
                kept = None if teacher.mask is None else teacher.mask[..., None]
                terms.append(masked_mse(mapped, t, kept))
        return torch.stack(terms).sum()


def masked_mse(s: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
    """Mean square over the values that `mask`, which is broadcast, keeps; over all of them without one."""
    squares = (s - t).square()
    if mask is None:
        return squares.mean()
    kept = mask.expand_as(squares)
    return (squares * kept).sum() / kept.sum().clamp_min(1)


def _between(mask: Tensor | None) -> Tensor | None:
    """(n, tokens) → (n, 1, queries, keys): where both are tokens."""
    return None if mask is None else mask[:, None, :, None] & mask[:, None, None, :]


def _places(f: Tensor) -> tuple[int, ...]:
    """Those of tokens (n, tokens, c), scores (n, heads, tokens, tokens) or a map (n, c, h, w)."""
    return tuple(f.shape[2:] if f.ndim == 4 else f.shape[1:-1])
