"""VGG with batch norm (Simonyan and Zisserman 2015) as Tian 2020 adapted it to small images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgekd.models.network import Shape, he_initialised, image_channels, network, scaled

# Convolutions in each of the five stages.
_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


def _factory(depth: int) -> Callable[..., nn.Module]:
    def build(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
        channels = image_channels(input_shape)
        layers: list[nn.Module] = []
        for stage, (convolutions, full) in enumerate(
            zip(_CONVOLUTIONS[depth], _WIDTHS, strict=True)
        ):
            outputs = scaled(full, width)
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                channels = outputs
            if stage < 3:
                layers.append(nn.MaxPool2d(2))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        return he_initialised(nn.Sequential(*layers))

    return build


for depth in _CONVOLUTIONS:
    network(
        f"vgg{depth}",
        "VGG with batch norm, for small images; args: width (1.0)",
        family="vgg",
        depth=depth,
        widths=("width",),
    )(_factory(depth))
