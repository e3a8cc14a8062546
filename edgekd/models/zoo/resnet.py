"""CIFAR ResNets with basic blocks (He 2016, §4.2), and the wider ones of Tian 2020 (resnet8x4 …)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.models.network import Shape, he_initialised, image_channels, network, scaled


class BasicBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)), F two 3×3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three stages of `(depth − 2) / 6` blocks at widths `stages`, global average, linear."""

    def __init__(
        self, channels: int, classes: int, depth: int, stem: int, stages: tuple[int, int, int]
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, stages[0], blocks, 1)
        self.layer2 = _stage(stages[0], stages[1], blocks, 2)
        self.layer3 = _stage(stages[1], stages[2], blocks, 2)
        self.fc = nn.Linear(stages[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _factory(depth: int, stem: int, stages: tuple[int, int, int]) -> Callable[..., nn.Module]:
    def build(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
        channels = image_channels(input_shape)
        first, second, third = (scaled(stage, width) for stage in stages)
        return he_initialised(
            ResNet(channels, classes, depth, scaled(stem, width), (first, second, third))
        )

    return build


def _register(name: str, family: str, depth: int, stem: int, stages: tuple[int, int, int]) -> None:
    widths = ", ".join(map(str, stages))
    about = {"family": family, "depth": depth, "widths": ("width",)}
    network(name, f"CIFAR ResNet, widths {widths}; args: width (1.0)", **about)(
        _factory(depth, stem, stages)
    )


for depth in (8, 14, 20, 32, 44, 56, 110):
    _register(f"resnet{depth}", "resnet", depth, 16, (16, 32, 64))
for depth in (8, 20, 32):
    _register(f"resnet{depth}x2", "resnetx2", depth, 32, (32, 64, 128))
    _register(f"resnet{depth}x4", "resnetx4", depth, 32, (64, 128, 256))
