"""Chen, Liu, Zhao, Jia 2021, "Distilling Knowledge via Knowledge Review", §3 (arXiv 2104.09044)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from edgekd.distill.method import FeatureMethod, Knowledge, Loss, method

if TYPE_CHECKING:
    from torch import Tensor, nn


@method("reviewkd", needs={"features"})
class ReviewKD(FeatureMethod):
    """The student's deeper maps help its earlier ones to match the teacher's (eqs. 5–6).

    From the last stage to the first, attention-based fusion (ABF) joins a stage with what the later
    ones have become; every fused map is held against the teacher's by a hierarchical context loss (HCL).
    """

    place: ClassVar[Literal["stages"]] = "stages"
    least: ClassVar[int] = 1
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    warmup: int = Field(20, ge=0, description="Epochs over which the weight rises linearly.")
    width: int = Field(512, ge=1, description="Most channels of the fused maps.")

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        from torch import nn

        from edgekd.distill.regressors import Trained

        super().build(student, teacher)
        pairs = self.pairs(student, teacher)
        mid = min(self.width, pairs[-1][0].shape[1])
        fusions = [
            fusion(s.shape[1], mid, t.shape[1], last=i == len(pairs) - 1)
            for i, (s, t) in enumerate(pairs)
        ]
        return Trained(nn.ModuleList(fusions), self.review)

    def review(
        self, fusions: nn.ModuleList, student: Knowledge, teacher: Knowledge, labels: Tensor
    ) -> Tensor:
        """The sum over the stages."""
        import torch
        from torch.nn.functional import interpolate

        from edgekd.distill.regressors import matched

        losses, residual = [], None
        stages = zip(fusions, self.pairs(student, teacher), strict=True)
        for module, (f_s, f_t) in reversed(list(stages)):
            abf = cast("nn.ModuleDict", module)
            x = abf["reduce"](f_s)
            if residual is not None:
                y = interpolate(residual, x.shape[2:], mode="nearest")
                attention = abf["attention"](torch.cat([x, y], dim=1)).sigmoid()
                x = x * attention[:, :1] + y * attention[:, 1:]
            residual = x
            losses.append(hcl(*matched(abf["expand"](x), f_t)))
        return torch.stack(losses).sum()


def fusion(channels: int, mid: int, out: int, *, last: bool) -> nn.ModuleDict:
    """ABF of one stage: to `mid` channels, two attention maps unless it is the last, to `out`."""
    from torch import nn

    def layer(a: int, b: int, size: int) -> nn.Module:
        convolution = nn.Conv2d(a, b, size, padding=size // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(b))

    parts = {"reduce": layer(channels, mid, 1), "expand": layer(mid, out, 3)}
    if not last:
        parts["attention"] = nn.Conv2d(2 * mid, 2, 1)
    return nn.ModuleDict(parts)


def hcl(f_s: Tensor, f_t: Tensor) -> Tensor:
    """MSE of maps (n, c, h, w) and of their 4×4, 2×2 and 1×1 averages, each half the weight before."""
    from torch.nn.functional import adaptive_avg_pool2d, mse_loss

    loss, weight, total = mse_loss(f_s, f_t), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= f_s.shape[2]:
            continue
        weight /= 2
        loss = loss + weight * mse_loss(
            adaptive_avg_pool2d(f_s, size), adaptive_avg_pool2d(f_t, size)
        )
        total += weight
    return loss / total
