"""ConvNeXt (Liu 2022) for small images: 7×7 depth-wise convolutions and an MLP per pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import UsageError
from edgekd.models.network import Shape, image_channels, network


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of (n, c, h, w), at every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in and out."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + γ · mlp(norm(depth-wise 7×7(x))), the linear layers over the last axis."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.act = nn.GELU()
        self.scale = nn.Parameter(scale * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) in and out."""
        wide = self.act(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        y: Tensor = self.scale * self.down(wide)
        return x + y.permute(0, 3, 1, 2)


@network(
    "convnext",
    "ConvNeXt for small images; args: patch (2), dims, depths, scale (0.1)",
    widths=("dims",),
    depths=("depths",),
)
def convnext(
    input_shape: Shape,
    classes: int,
    patch: int = 2,
    dims: Sequence[int] = (32, 64, 128),
    depths: Sequence[int] = (2, 2, 2),
    scale: float = 0.1,
) -> nn.Module:
    """A stage of `depths[i]` blocks with `dims[i]` channels each, half the size of the one before.

    `patch` is the stride of the stem; `scale` is where the layers' own scale γ starts (1e-6 in the
    paper, which takes ImageNet's number of steps to grow).
    """
    channels = image_channels(input_shape)
    if len(dims) != len(depths) or not dims:
        raise UsageError(f"dims {list(dims)} and depths {list(depths)} should be as long")
    if min(input_shape[1:]) < patch * 2 ** (len(dims) - 1):
        raise UsageError(f"{len(dims)} stages after a patch of {patch} need larger images")
    layers: list[nn.Module] = [nn.Conv2d(channels, dims[0], patch, patch), ChannelNorm(dims[0])]
    for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        if stage:
            layers += [ChannelNorm(dims[stage - 1]), nn.Conv2d(dims[stage - 1], dim, 2, 2)]
        layers += [Block(dim, scale) for _ in range(depth)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(dims[-1], eps=1e-6)]
    return nn.Sequential(*layers, nn.Linear(dims[-1], classes))
