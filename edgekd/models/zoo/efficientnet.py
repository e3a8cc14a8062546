"""EfficientNet (Tan and Le 2019) for small images: inverted bottlenecks with squeeze and excitation."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models.network import Shape, he_initialised, image_channels, network

# (expansion, channels, blocks, stride of the first block, kernel): B0's, table 1, with two of its
# five halvings left, as for other networks of ImageNet on small images.
_STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 1, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 1, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


class SqueezeExcitation(nn.Module):
    """x · σ(W₂ silu(W₁ mean(x))), a gate per channel (Hu 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = (
            nn.Conv2d(channels, squeezed, 1),
            nn.Conv2d(squeezed, channels, 1),
        )
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) in and out."""
        squeezed = self.act(self.reduce(x.mean((2, 3), keepdim=True)))
        gate: Tensor = self.expand(squeezed).sigmoid()
        return x * gate


class MBConv(nn.Module):
    """1×1 up to `expansion` times the channels, depth-wise, squeeze and excitation, 1×1 down."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
        layers += [
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
            SqueezeExcitation(wide, max(1, inputs // 4)),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


@network("efficientnet", "EfficientNet-B0 for small images; args: width (0.5)", widths=("width",))
def efficientnet(input_shape: Shape, classes: int, width: float = 0.5) -> nn.Module:
    """`width` multiplies the channels of every stage but the last 1×1 layer's 1280."""
    inputs = max(8, int(32 * width))
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels(input_shape), inputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.SiLU(),
    ]
    for expansion, channels, blocks, stride, kernel in _STAGES:
        outputs = max(8, int(channels * width))
        for block in range(blocks):
            first = stride if block == 0 else 1
            layers.append(MBConv(inputs, outputs, first, expansion, kernel))
            inputs = outputs
    layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.SiLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return he_initialised(nn.Sequential(*layers))
