"""Numbers in the units of the data: a network learns them at mean 0 and deviation 1, and gives them back.

The last linear layer is followed by × std + mean, which is exported with it: no device has to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.results import OutputScale

if TYPE_CHECKING:
    from collections.abc import Iterator


class Scaled(nn.Module):
    """`linear`(x) × std + mean, per output."""

    mean: Tensor
    std: Tensor

    def __init__(self, linear: nn.Linear, scale: OutputScale) -> None:
        super().__init__()
        self.linear = linear
        # In the card, not with the weights: a network with this head takes what one without it has.
        self.register_buffer("mean", torch.tensor(scale.mean), persistent=False)
        self.register_buffer("std", torch.tensor(scale.std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, …) to (n, outputs)."""
        y: Tensor = self.linear(x) * self.std + self.mean
        return y


def scale_outputs(module: nn.Module, scale: OutputScale) -> None:
    """Give `module` this head in place of its last linear layer, unless that has other outputs."""
    found = list(_linears(module))
    if found and found[-1][2].out_features == len(scale.mean):
        parent, name, linear = found[-1]
        setattr(parent, name, Scaled(linear, scale))


def scale_of(module: nn.Module) -> OutputScale | None:
    """That of the head it was given."""
    for part in module.modules():
        if isinstance(part, Scaled):
            return OutputScale(mean=tuple(part.mean.tolist()), std=tuple(part.std.tolist()))
    return None


def _linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child
