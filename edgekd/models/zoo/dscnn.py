"""Depth-wise separable CNN for microcontrollers and small CPUs (DS-CNN, Zhang 2017)."""

from __future__ import annotations

from torch import nn

from edgekd.models.network import Shape, image_channels, network


@network(
    "dscnn",
    "depth-wise separable CNN, the smallest here; args: width (24), depth (2)",
    widths=("width",),
    depths=("depth",),
    student_of=(3,),
)
def dscnn(input_shape: Shape, classes: int, width: int = 24, depth: int = 2) -> nn.Module:
    """A 3×3 convolution to `width` channels, then `depth` separable ones to twice as many.

    The first separable convolution has stride 2.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels(input_shape), width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    inputs = width
    for position in range(depth):
        layers += _separable(inputs, 2 * width, 2 if position == 0 else 1)
        inputs = 2 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers)


@network(
    "dscnn-kws",
    "DS-CNN for keyword spotting, of spectrograms; args: width (64), depth (4)",
    example=(1, 49, 40),
    widths=("width",),
    depths=("depth",),
)
def dscnn_kws(input_shape: Shape, classes: int, width: int = 64, depth: int = 4) -> nn.Module:
    """As DS-CNN (S) of Zhang et al. 2017 (arXiv 1711.07128): a convolution of 10 frames × 4 features with
    stride 2, then `depth` separable ones of `width` channels.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels(input_shape), width, (10, 4), 2, (5, 1), bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    for _ in range(depth):
        layers += _separable(width, width, 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(*layers)


def _separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
