"""The head that gives numbers in their units is where the network's outputs are made."""

import copy

import pytest
import torch
from torch import nn

from edgekd.models.head import Scaled, ScaledNetwork, scale_of, scale_outputs
from edgekd.results import OutputScale

SCALE = OutputScale(mean=(500.0,), std=(9.0,))
EXAMPLE = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """Its head is registered before a gate of as many outputs."""

    def __init__(self):
        super().__init__()
        self.head, self.gate = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x * self.gate(x).sigmoid())


class Product(nn.Module):
    """Its last product is no layer."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(4, 1), nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return self.first(x).relu() @ self.weight + 0.5


def squashed():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())


@pytest.mark.parametrize(("make", "around"), [(Gated, False), (Product, True), (squashed, True)])
def test_outputs_are_in_units_wherever_the_network_ends(make, around):
    torch.manual_seed(0)
    network = make()
    before = copy.deepcopy(network)(EXAMPLE)
    scaled = scale_outputs(network, SCALE, EXAMPLE)
    torch.testing.assert_close(scaled(EXAMPLE), before * 9 + 500)
    assert isinstance(scaled, ScaledNetwork) == around
    assert scale_of(scaled) == SCALE
    if not around:
        assert isinstance(scaled.head, Scaled)
        assert isinstance(scaled.gate, nn.Linear)
    # As it is built anew, to be filled with the weights.
    again = scale_outputs(make(), SCALE, EXAMPLE)
    again.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(again(EXAMPLE), scaled(EXAMPLE))
