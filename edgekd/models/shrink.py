"""Smaller networks than the teacher: scaled members of known families, as specs that `resolve` builds.

Widths go down by a multiplier, depths in steps. What channels of the teacher itself can be left out is
in `models/prune.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekd.errors import UsageError
from edgekd.models.network import NETWORKS, Network, Shape

# Multipliers of widths: from nearly all of them to an eighth. Families made for small devices also
# become students by growing.
_WIDTHS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
_GROWN = (4.0, 2.0, *_WIDTHS)
# Shares of a depth that is an argument.
_DEPTHS = (1.0, 0.5, 0.25)
# Fewer channels than this are no network worth training.
_LEAST = 4
_ZOO = "zoo:"


@dataclass(frozen=True)
class Spec:
    """A network as text: `student.model` and `student.args`; `origin` says how it came about."""

    model: str
    args: dict[str, Any]
    origin: str
    parameters: int = 0
    # Of one design: what a plot gives one colour.
    family: str = ""


def smaller(
    model: str, args: dict[str, Any], *, input_shape: Shape, classes: int, parameters: int
) -> list[Spec]:
    """Members of the teacher's family and of those for such inputs, with fewer than `parameters`.

    `model` and `args` are the teacher's, which may be no network of the zoo. The largest first; those
    that do not take such inputs are left out.
    """
    found: dict[tuple[str, str], Spec] = {}
    for network, start, widths in _families(model, args, input_shape):
        for chosen, origin in _scaled(network, start, widths):
            count = _parameters(network, chosen, input_shape, classes)
            if count is None or not 0 < count < parameters:
                continue
            spec = Spec(f"{_ZOO}{network.name}", chosen, origin, count, network.family)
            found.setdefault((spec.model, repr(sorted(chosen.items()))), spec)
    return sorted(found.values(), key=lambda spec: (-spec.parameters, spec.model))


def _families(
    model: str, args: dict[str, Any], input_shape: Shape
) -> Iterator[tuple[Network, dict[str, Any], tuple[float, ...]]]:
    """Networks to scale, the arguments that they have at full size, and the multipliers."""
    every = [NETWORKS.get(name) for name in NETWORKS.names()]
    every = [network for network in every if network.task == "classification"]
    own = next((n for n in every if model == f"{_ZOO}{n.name}"), None)
    if own is not None:
        for network in every:
            shallower = own.depth is None or (network.depth or 0) <= own.depth
            if network.family == own.family and shallower:
                yield network, args, _WIDTHS
    # Token ids look like flat inputs, and nothing but their own family reads them.
    if own is not None and own.family == "bert":
        return
    for network in every:
        if len(input_shape) in network.student_of and (own is None or network.family != own.family):
            yield network, {}, _GROWN


def _scaled(
    network: Network, args: dict[str, Any], widths: tuple[float, ...]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Arguments of its scaled members, and what was done to them."""
    full = {**_defaults(network), **args}
    for share in _DEPTHS if network.depths else (1.0,):
        for width in widths if network.widths else (1.0,):
            # What divides a width has to divide the scaled one.
            step = full["heads"] if isinstance(full.get("heads"), int) else 1
            narrowed = network.widths if width != 1 else ()
            shortened = network.depths if share != 1 else ()
            changed = {
                **{key: _times(full[key], width, step) for key in narrowed},
                **{key: _times(full[key], share, 1, least=1) for key in shortened},
            }
            if any(value is None for value in changed.values()):
                continue
            parts = [f"width × {width:g}"] if width != 1 else []
            parts += [f"depth × {share:g}"] if share != 1 else []
            yield {**args, **changed}, ", ".join(parts) or "as it is"


def _times(value: Any, factor: float, step: int, least: int = _LEAST) -> Any:
    """A number or a list of them times `factor`, whole where it was; None where too little is left."""
    if isinstance(value, list | tuple):
        scaled = [_times(item, factor, step, least) for item in value]
        return None if None in scaled else scaled
    if isinstance(value, float):
        return round(value * factor, 4)
    number = max(step, round(value * factor / step) * step)
    return number if number >= least else None


def _defaults(network: Network) -> dict[str, Any]:
    parameters = inspect.signature(network.build).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _parameters(
    network: Network, args: dict[str, Any], input_shape: Shape, classes: int
) -> int | None:
    """None for a network that does not take these inputs or arguments."""
    import torch

    try:
        with torch.device("meta"):
            module = network.build(input_shape, classes, **args)
    except (UsageError, TypeError, ValueError, RuntimeError, ZeroDivisionError):
        return None
    return sum(p.numel() for p in module.parameters())
