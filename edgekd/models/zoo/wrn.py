"""Wide residual networks (Zagoruyko and Komodakis 2016) for small images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.models.network import Shape, he_initialised, image_channels, network


class PreactivationBlock(nn.Module):
    """y = F(relu(bn(x))) + shortcut; where the shape changes the shortcut starts after the ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        a = F.relu(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))


class WideResNet(nn.Module):
    """Three stages of `(depth − 4) / 6` blocks at 16, 32 and 64 times `width` channels."""

    def __init__(self, channels: int, classes: int, depth: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, 1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, 2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn(x)).mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreactivationBlock(inputs, outputs, stride)
    rest = (PreactivationBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _factory(depth: int, width: int) -> Callable[[Shape, int], nn.Module]:
    def build(input_shape: Shape, classes: int) -> nn.Module:
        return he_initialised(WideResNet(image_channels(input_shape), classes, depth, width))

    return build


for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2)):
    network(f"wrn{depth}-{width}", "wide ResNet: depth-width", family=f"wrn-{width}", depth=depth)(
        _factory(depth, width)
    )
