"""Numbers in the units of the data: a network learns them at mean 0 and deviation 1, and gives them back.

The last linear layer, or the network, is followed by × std + mean, which is exported with it: no device
has to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.results import OutputScale

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Units(nn.Module):
    """× std + mean, per output."""

    mean: Tensor
    std: Tensor

    def __init__(self, scale: OutputScale) -> None:
        super().__init__()
        # In the card, not with the weights: a network with this head takes what one without it has.
        self.register_buffer("mean", torch.tensor(scale.mean), persistent=False)
        self.register_buffer("std", torch.tensor(scale.std), persistent=False)

    def units(self, y: Tensor) -> Tensor:
        """(n, outputs) at mean 0 and deviation 1 in the units of the data."""
        return y * self.std + self.mean


class Scaled(_Units):
    """`linear`(x) × std + mean."""

    def __init__(self, linear: nn.Linear, scale: OutputScale) -> None:
        super().__init__(scale)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(n, …) to (n, outputs)."""
        return self.units(self.linear(x))


class ScaledNetwork(_Units):
    """`network`(x) × std + mean, for one that does not end with a linear layer."""

    def __init__(self, network: nn.Module, scale: OutputScale) -> None:
        super().__init__(scale)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(n, …) to (n, outputs)."""
        return self.units(self.network(x))


def scale_outputs(module: nn.Module, scale: OutputScale, example: Tensor) -> nn.Module:
    """`module` with this head in the place of the linear layer whose outputs are its own, or around it.

    `example` (n, …) is a batch that shows which layer that is.
    """
    for parent, name, linear in reversed(list(_linears(module))):
        if linear.out_features == len(scale.mean) and _ends_with(module, parent, name, example):
            setattr(parent, name, Scaled(linear, scale))
            return module
    return ScaledNetwork(module, scale)


@torch.no_grad()
def _ends_with(module: nn.Module, parent: nn.Module, name: str, example: Tensor) -> bool:
    """Whether what is done to this layer's outputs is done to the network's."""
    linear, training = getattr(parent, name), module.training
    outputs = linear.out_features
    module.eval()
    before = module(example)
    setattr(parent, name, Scaled(linear, OutputScale(mean=(1.0,) * outputs, std=(2.0,) * outputs)))
    after = module(example)
    setattr(parent, name, linear)
    module.train(training)
    return torch.allclose(after, 2 * before + 1, rtol=1e-4, atol=1e-4)


def scale_of(module: nn.Module) -> OutputScale | None:
    """That of the head it was given."""
    for part in module.modules():
        if isinstance(part, _Units):
            return OutputScale(mean=tuple(part.mean.tolist()), std=tuple(part.std.tolist()))
    return None


def _linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child
