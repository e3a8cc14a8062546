"""VGG with batch norm (Simonyan and Zisserman 2015) as Tian 2020 adapted it to small images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgekd.models.network import Shape, he_initialised, image_channels, network

# Convolutions in each of the five stages.
_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


def _factory(depth: int) -> Callable[[Shape, int], nn.Module]:
    def build(input_shape: Shape, classes: int) -> nn.Module:
        channels = image_channels(input_shape)
        layers: list[nn.Module] = []
        for stage, (convolutions, width) in enumerate(
            zip(_CONVOLUTIONS[depth], _WIDTHS, strict=True)
        ):
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            if stage < 3:
                layers.append(nn.MaxPool2d(2))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        return he_initialised(nn.Sequential(*layers))

    return build


for depth in _CONVOLUTIONS:
    network(f"vgg{depth}", "VGG with batch norm, for small images")(_factory(depth))
