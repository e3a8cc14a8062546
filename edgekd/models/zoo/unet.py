"""U-Net (Ronneberger, Fischer, Brox 2015, arXiv 1505.04597): a class for every pixel.

With batch normalisation and padding, so that outputs have the size of the inputs, and with nearest-neighbour
upsampling and a convolution where the paper has a transposed one (Odena 2016).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.models.network import Shape, image_channels, network


@network(
    "unet",
    "U-Net, a class per pixel; args: width (32), depth (3), separable (false)",
    task="segmentation",
    widths=("width",),
    depths=("depth",),
)
def unet(
    input_shape: Shape, classes: int, width: int = 32, depth: int = 3, separable: bool = False
) -> nn.Module:
    """`depth` times half the size and twice the `width`; `separable`: depth-wise separable convolutions."""
    if not 1 <= depth <= 6 or width < 1:
        raise UsageError(f"depth {depth} should be 1 to 6, and width {width} 1 or more")
    channels = image_channels(input_shape, least=2**depth)
    if any(side % 2**depth for side in input_shape[1:]):
        raise UsageError(
            f"needs images whose sides are multiples of {2**depth}, not "
            f"{input_shape[1]}×{input_shape[2]}",
            fix="set data.image_size, or a smaller depth",
        )
    return UNet(channels, classes, width, depth, separable)


class UNet(nn.Module):
    """(n, channels, height, width) to logits (n, classes, height, width)."""

    def __init__(
        self, channels: int, classes: int, width: int, depth: int, separable: bool
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _twice(inputs, outputs, separable and level > 0)
            for level, (inputs, outputs) in enumerate(
                zip([channels, *widths[:-1]], widths, strict=True)
            )
        )
        self.pool = nn.MaxPool2d(2)
        self.larger = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.ModuleList(
            _twice(widths[level] + widths[level + 1], widths[level], separable)
            for level in reversed(range(depth))
        )
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            kept.append(x)
        kept.pop()
        for block in self.up:
            x = block(torch.cat([kept.pop(), self.larger(x)], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


def _twice(inputs: int, outputs: int, separable: bool) -> nn.Sequential:
    return nn.Sequential(
        *_convolved(inputs, outputs, separable), *_convolved(outputs, outputs, separable)
    )


def _convolved(inputs: int, outputs: int, separable: bool) -> list[nn.Module]:
    if not separable:
        return [
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return [
        nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
