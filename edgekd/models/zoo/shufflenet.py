"""ShuffleNet (Zhang 2018) and ShuffleNetV2 (Ma 2018) for small images, as in Tian 2020."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.models.network import Shape, he_initialised, image_channels, network


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups."""
    n, channels, h, w = x.shape
    x = x.reshape(n, groups, channels // groups, h, w).transpose(1, 2)
    return x.reshape(n, channels, h, w)


class ShuffleBlock(nn.Module):
    """Grouped 1×1, shuffle, depth-wise 3×3, grouped 1×1; with stride 2 joined to the pooled input."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        grown = outputs - inputs if stride == 2 else outputs
        middle = grown // 4
        # The stem's 24 channels are too few to be grouped.
        self.groups = 1 if inputs == 24 else groups
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, grown, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(grown)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 2:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))
        return F.relu(y + x)


@network("shufflenetv1", "ShuffleNet with 3 groups for small images")
def shufflenetv1(input_shape: Shape, classes: int) -> nn.Module:
    """Stages of 4, 8 and 4 blocks with 240, 480 and 960 channels."""
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels(input_shape), 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
    ]  # fmt: skip
    inputs = 24
    for outputs, blocks in ((240, 4), (480, 8), (960, 4)):
        for block in range(blocks):
            layers.append(ShuffleBlock(inputs, outputs, 2 if block == 0 else 1, 3))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return he_initialised(nn.Sequential(*layers))


class SplitBlock(nn.Module):
    """V2: half of the channels pass by, the others go through `branch`, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = _branch(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        passed, worked = x.chunk(2, 1)
        return shuffle(torch.cat([passed, self.branch(worked)], 1), 2)


class DownBlock(nn.Module):
    """V2 with stride 2: two branches of half the output channels each, shuffled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip
        self.right = _branch(inputs, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/2, w/2)."""
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs, bias=False), nn.BatchNorm2d(outputs),
        nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


@network("shufflenetv2", "ShuffleNetV2 1× for small images")
def shufflenetv2(input_shape: Shape, classes: int) -> nn.Module:
    """Stages of 4, 8 and 4 blocks with 116, 232 and 464 channels, then 1024."""
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels(input_shape), 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
    ]  # fmt: skip
    inputs = 24
    for outputs, blocks in ((116, 3), (232, 7), (464, 3)):
        layers += [DownBlock(inputs, outputs), *(SplitBlock(outputs) for _ in range(blocks))]
        inputs = outputs
    layers += [nn.Conv2d(inputs, 1024, 1, bias=False), nn.BatchNorm2d(1024), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes)]
    return he_initialised(nn.Sequential(*layers))
