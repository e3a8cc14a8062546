"""Multi-layer perceptron: inputs of any shape, flattened."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from edgekd.models.network import Shape, network


@network(
    "mlp",
    "linear, batch norm and ReLU per hidden layer; args: hidden, dropout, input_dropout, norm",
    widths=("hidden",),
    student_of=(1,),
)
def mlp(
    input_shape: Shape,
    classes: int,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    norm: bool = True,
) -> nn.Module:
    """`hidden` are the widths of the layers, `dropout` the rate after each, `norm`: batch norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    if input_dropout:
        layers.append(nn.Dropout(input_dropout))
    width = math.prod(input_shape)
    for size in hidden:
        layers += [nn.Linear(width, size), *([nn.BatchNorm1d(size)] if norm else []), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))
