"""One-dimensional convolutions, for signals such as sound, vibration or heart beats (Kiranyaz 2016)."""

from __future__ import annotations

from torch import nn

from edgekd.models.network import Shape, network
from edgekd.models.sequence import Sequence


@network(
    "conv1d",
    "1-D convolutions over time; args: width (32), depth (3), kernel (5)",
    widths=("width",),
    depths=("depth",),
    student_of=(2,),
)
def conv1d(
    input_shape: Shape, classes: int, width: int = 32, depth: int = 3, kernel: int = 5
) -> nn.Module:
    """`depth` convolutions with stride 2 and `kernel` (odd), the width doubling; mean over time.

    Signals are (channels, length); of images, the rows are the steps of time.
    """
    steps = Sequence(input_shape)
    layers: list[nn.Module] = [steps]
    inputs = steps.features
    for position in range(depth):
        outputs = width * 2**position
        layers += [
            nn.Conv1d(inputs, outputs, kernel, 2, kernel // 2, bias=False),
            nn.BatchNorm1d(outputs),
            nn.ReLU(),
        ]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers)
