"""Inputs of any shape as sequences, for networks over time."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models.network import Shape


class Sequence(nn.Module):
    """(n, *shape) → (n, features, steps), or (n, steps, features) with `steps_first`.

    (length,) has one feature, (channels, length) is taken as it is, and the rows of an image
    (channels, height, width) are steps of channels · width features.
    """

    def __init__(self, shape: Shape, *, steps_first: bool = False) -> None:
        super().__init__()
        self.rank, self.steps_first = len(shape), steps_first
        self.features = {1: 1, 2: shape[0]}.get(len(shape), shape[0] * shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """One sequence per sample."""
        if self.rank == 1:
            x = x.unsqueeze(1)
        elif self.rank == 3:
            x = x.permute(0, 1, 3, 2).flatten(1, 2)
        return x.transpose(1, 2) if self.steps_first else x
