"""Kim, Park, Kwak 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer".

arXiv 1802.04977.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, method

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRST = "First epochs in which only the paraphraser is trained; the student waits."


@method("ft", needs={"features"})
class FT(FeatureMethod):
    """mean ‖F_T/‖F_T‖ − F_S/‖F_S‖‖_p^p of factors, p = 1 (eqs. 1–3).

    A paraphraser, an autoencoder of the teacher's map with `rate`·c channels inside, is trained in the
    first `alone` epochs; then its encoder gives F_T, and a translator trained with the student F_S.
    """

    place: ClassVar[Literal["last stage"]] = "last stage"
    least: ClassVar[int] = 1
    settles: ClassVar[bool] = True
    weight: float = Field(200.0, ge=0, allow_inf_nan=False)
    rate: float = Field(
        0.5, gt=0, le=4, description="k: channels of a factor per one of the teacher's."
    )
    p: Literal[1, 2] = 1
    alone: int = Field(30, ge=1, description=FIRST)

    @property
    def persists(self) -> bool:
        return True

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from torch import nn

        from edgekd.distill.regressors import TwoStage

        super().build(student, teacher)
        pairs = self.pairs(student, teacher)
        parts = nn.ModuleList()
        for f_s, f_t in pairs:
            inside = max(1, round(self.rate * f_t.shape[1]))
            parts.append(
                nn.ModuleDict(
                    {
                        "encoder": layers(f_t.shape[1], f_t.shape[1], inside, inside),
                        "decoder": layers(inside, inside, f_t.shape[1], f_t.shape[1]),
                        "translator": layers(f_s.shape[1], f_s.shape[1], inside, inside),
                    }
                )
            )
        return TwoStage(parts, self.reconstruction, self.transfer)

    def reconstruction(
        self, parts: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """Mean (x − P(x))² of the paraphraser, eq. 1; summed over the pairs."""
        import torch

        losses = []
        for module, (_, f_t) in zip(parts, self.pairs(student, teacher), strict=True):
            part = cast("nn.ModuleDict", module)
            losses.append((part["decoder"](part["encoder"](f_t)) - f_t).square().mean())
        return torch.stack(losses).sum()

    def transfer(
        self, parts: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """Eq. 3, summed over the pairs; the paraphraser stays as it is."""
        import torch

        from edgekd.distill.regressors import matched

        losses = []
        for module, (f_s, f_t) in zip(parts, self.pairs(student, teacher), strict=True):
            part = cast("nn.ModuleDict", module)
            with torch.no_grad():
                factor = part["encoder"].eval()(f_t)
            s, t = matched(part["translator"](f_s), factor)
            losses.append((unit(s) - unit(t)).abs().pow(self.p).mean())
        return torch.stack(losses).sum()


def unit(f: Tensor) -> Tensor:
    """(n, c, h, w) → (n, c·h·w), of unit length."""
    from torch.nn.functional import normalize

    return normalize(f.flatten(1))


def layers(*channels: int) -> nn.Sequential:
    """3×3 convolutions with batch norm and leaky ReLU from one number of channels to the next."""
    import itertools

    from torch import nn

    found: list[nn.Module] = []
    for a, b in itertools.pairwise(channels):
        found += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
    return nn.Sequential(*found)
