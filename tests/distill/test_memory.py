"""Memory that a training keeps between its steps."""

import resource
import sys

import pytest
import torch
from torch import nn

from edgekd.distill.memory import kept_memory
from edgekd.profile.device.memory import resident

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Activations of 48 MiB: glibc by itself gives blocks of more than 32 MiB back at once."""
    layers = [nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1), nn.Flatten(), nn.Sigmoid()]
    return nn.Sequential(*layers)


def faults(model: nn.Module, steps: int) -> float:
    """Page faults per step."""
    images = torch.randn(48, 3, 64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        model(images).sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def test_steps_use_the_memory_of_those_before(model):
    with kept_memory():
        faults(model, 8)
        inside = faults(model, 4)
    outside = faults(model, 4)
    assert inside < outside / 4


def test_memory_is_given_back_at_the_end(model):
    with kept_memory():
        faults(model, 2)
        inside = resident()
    assert resident() < inside - (48 << 20)


def test_memory_is_given_back_after_an_error(model):
    with pytest.raises(ZeroDivisionError), kept_memory():
        faults(model, 2)
        inside = resident()
        1 / 0  # noqa: B018
    assert resident() < inside - (48 << 20)
