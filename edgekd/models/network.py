"""What a built-in reference network is: a few per file under `zoo/`, registered by `@network`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from edgekd.errors import UsageError
from edgekd.registry import Registry

Shape = tuple[int, ...]
# (input shape without the batch, number of classes, its own arguments) -> the untrained network
Factory = Callable[..., nn.Module]
F = TypeVar("F", bound=Factory)


@dataclass(frozen=True)
class Network:
    """`zoo:NAME`. `build(input_shape, classes, **args)` makes it with PyTorch's random state.

    `example` is an input shape that it takes. The rest says how it gets smaller (`models/shrink.py`):
    members of one `family` are of one design; `depth` are the layers in a member's name; `widths` are
    arguments that are scaled with its width, `depths` those that count layers. `student_of` are the
    ranks of inputs for which it is a student of teachers of any design: 1 flat, 2 signals, 3 images.
    `task` is what its outputs are for (`tasks/task.py`).
    """

    name: str
    description: str
    build: Factory
    example: Shape = (3, 32, 32)
    family: str = ""
    depth: int | None = None
    widths: tuple[str, ...] = ()
    depths: tuple[str, ...] = ()
    student_of: tuple[int, ...] = ()
    task: str = "classification"


NETWORKS: Registry[Network] = Registry("network", "edgekd.models.zoo")


def network(name: str, description: str, **about: Any) -> Callable[[F], F]:
    """Decorator: register a factory as `zoo:name`; `about` are the other fields of `Network`."""

    def decorate(build: F) -> F:
        NETWORKS.register(name)(Network(name, description, build, **{"family": name, **about}))
        return build

    return decorate


def image_channels(input_shape: Shape, least: int = 8) -> int:
    """Channels of image inputs. Raises UsageError for flat inputs or images below `least` pixels."""
    if len(input_shape) != 3:
        raise UsageError(
            f"is for images; these inputs have the shape {input_shape}",
            fix="zoo:mlp takes inputs of any shape",
        )
    if min(input_shape[1:]) < least:
        raise UsageError(
            f"needs images of {least}×{least} pixels or more, not {input_shape[1]}×{input_shape[2]}",
            fix="set data.image_size, or use zoo:mlp",
        )
    return input_shape[0]


def scaled(channels: int, width: float) -> int:
    """So many channels times `width`, at least 4. Raises UsageError for a width that is none."""
    if not 0 < width <= 16:
        raise UsageError(f"width {width} should be above 0 and at most 16")
    return channels if width == 1 else max(4, round(channels * width))


def he_initialised(module: nn.Module) -> nn.Module:
    """Kaiming-normal convolutions by fan-out (He 2015), as the published CIFAR recipes use."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module
