"""Recurrent networks: LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho 2014)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgekd.models.network import Shape, network
from edgekd.models.sequence import Sequence


class Recurrent(nn.Module):
    """Layers over time, forwards; the last step's state, then a linear layer."""

    def __init__(
        self, kind: type[nn.LSTM] | type[nn.GRU], shape: Shape, classes: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.steps = Sequence(shape, steps_first=True)
        self.recurrent = kind(self.steps.features, width, depth, batch_first=True)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape) → logits (n, classes)."""
        states, _ = self.recurrent(self.steps(x))
        logits: Tensor = self.fc(states[:, -1])
        return logits


def _factory(kind: type[nn.LSTM] | type[nn.GRU]) -> Callable[..., nn.Module]:
    def build(input_shape: Shape, classes: int, width: int = 64, depth: int = 1) -> nn.Module:
        return Recurrent(kind, input_shape, classes, width, depth)

    return build


_SMALLER = {"widths": ("width",), "depths": ("depth",)}
network("lstm", "LSTM over time, or over an image's rows; args: width (64), depth (1)", **_SMALLER)(
    _factory(nn.LSTM)
)
network(
    "gru",
    "GRU over time, or over an image's rows; args: width (64), depth (1)",
    student_of=(2,),
    **_SMALLER,
)(_factory(nn.GRU))
