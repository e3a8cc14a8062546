"""Taps: named places in a model, read by forward hooks; the model itself is never edited."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.registry import suggestion

PENULTIMATE = "penultimate"


@dataclass(frozen=True)
class Tap:
    """Where to read: the output of module `path`, or its input."""

    path: str
    input: bool = False


def parse(name: str, model: nn.Module) -> Tap:
    """ "layer3", "layer3.0.conv1:input", or "penultimate": what enters the last linear layer.

    Raises UsageError naming the nearest module for one that does not exist.
    """
    if name == PENULTIMATE:
        linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UsageError(f"{type(model).__name__} has no linear layer to be penultimate to")
        return Tap(linear[-1], input=True)
    path, _, side = name.partition(":")
    modules = dict(model.named_modules())
    if not path or path not in modules or side not in ("", "input", "output"):
        raise UsageError(
            f"no tap {name!r} in {type(model).__name__}{suggestion(path, filter(None, modules))}",
            fix="a tap is a module's dotted path, optionally with :input, or penultimate",
        )
    return Tap(path, side == "input")


class Tapped:
    """Reads the taps `names` of `model` while it runs; use as a context manager."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model = model
        self.taps = {name: parse(name, model) for name in names}
        self._seen: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Tapped:
        """Hook the model."""
        modules = dict(self.model.named_modules())
        for name, tap in self.taps.items():
            self._hooks.append(modules[tap.path].register_forward_hook(self._keep(name, tap)))
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __call__(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's output, and what passed each tap. Raises UsageError for a tap not reached."""
        self._seen.clear()
        output = self.model(inputs)
        missing = [name for name in self.taps if name not in self._seen]
        if missing:
            raise UsageError(f"tap {missing[0]!r} is not reached when the model runs")
        return output, dict(self._seen)

    def _keep(self, name: str, tap: Tap):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            value = inputs[0] if tap.input else output
            if not isinstance(value, Tensor):
                raise UsageError(f"tap {name!r} gives a {type(value).__name__}, not one tensor")
            self._seen[name] = value

        return hook


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def stages(model: nn.Module, inputs: Tensor) -> list[str]:
    """The module that gives the last feature map (n, c, h, w) of each spatial size, large to small.

    Of transformers, whose tokens (n, tokens, c) keep their number, the blocks that end each third.
    Found by running `inputs` once. Maps of 1×1 are left out: they are vectors.
    """
    maps: dict[tuple[int, ...], str] = {}
    tokens: list[str] = []
    hooks = []

    def keep(path: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> None:
            value = _first(output)
            if value is None:
                return
            if value.ndim == 3:
                tokens.append(path)
            elif value.ndim == 4 and min(value.shape[2:]) > 1:
                maps.pop(tuple(value.shape[2:]), None)
                maps[tuple(value.shape[2:])] = path

        return hook

    for path, module in model.named_modules():
        if path:
            hooks.append(module.register_forward_hook(keep(path)))
    try:
        with _evaluating(model):
            model(inputs)
    finally:
        for handle in hooks:
            handle.remove()
    blocks = _blocks(model, tokens)
    if blocks:
        ends = sorted({-(-len(blocks) * third // 3) for third in (1, 2, 3)})
        return [blocks[end - 1] for end in ends]
    return list(maps.values())


def _first(output: object) -> Tensor | None:
    """The tensor that a module gives, or the first of several."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _blocks(model: nn.Module, tokens: list[str]) -> list[str]:
    """The longest list or sequence of modules of one kind that all give tokens, two at least."""
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
        alike = len({type(child) for child in module.children()}) == 1
        if alike and len(children) >= 2 and all(child in tokens for child in children):
            found = max(found, children, key=len)
    return found


def pair_stages(teacher: list[str], student: list[str]) -> list[tuple[str, str]]:
    """Pairs from the end, where both are most abstract: the deeper model's extra early maps go."""
    count = min(len(teacher), len(student))
    return list(zip(teacher[len(teacher) - count :], student[len(student) - count :], strict=True))
