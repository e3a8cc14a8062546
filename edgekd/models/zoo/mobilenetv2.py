"""MobileNetV2 (Sandler 2018) for small images, as in the published distillation tables (Tian 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models.network import Shape, he_initialised, image_channels, network

# (expansion, channels, blocks, stride of the first block); expansion 0 stands for the argument.
_STAGES = (
    (1, 16, 1, 1), (0, 24, 2, 1), (0, 32, 3, 2), (0, 64, 4, 2), (0, 96, 3, 1), (0, 160, 3, 2),
    (0, 320, 1, 1),
)  # fmt: skip


class InvertedResidual(nn.Module):
    """1×1 up to `expansion` times the channels, depth-wise 3×3, 1×1 down without a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


@network(
    "mobilenetv2",
    "MobileNetV2 for small images; args: width (0.5), expansion (6)",
    widths=("width",),
    student_of=(3,),
)
def mobilenetv2(
    input_shape: Shape, classes: int, width: float = 0.5, expansion: int = 6
) -> nn.Module:
    """`width` multiplies the channels of every stage but the last 1×1 layer's 1280."""
    inputs = int(32 * width)
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels(input_shape), inputs, 3, 2, 1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
    ]
    for factor, channels, blocks, stride in _STAGES:
        outputs = int(channels * width)
        for block in range(blocks):
            layers.append(
                InvertedResidual(inputs, outputs, stride if block == 0 else 1, factor or expansion)
            )
            inputs = outputs
    layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return he_initialised(nn.Sequential(*layers))
