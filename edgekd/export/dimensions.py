"""`export.dynamic`: which sizes of the inputs are free in the exported files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.schema import Export
from edgekd.errors import StageError, UsageError
from edgekd.export.agreement import CLOSE, difference, onnx_outputs, reference
from edgekd.export.exporter import Source

if TYPE_CHECKING:
    from torch import Tensor

# Which axis of an input of which rank a name means: (n, c, height, width), (n, c, length),
# (n, sequence) and (n, sequence, features).
_AXES: dict[str, dict[int, int]] = {
    "height": {4: 2},
    "width": {4: 3},
    "length": {3: 2},
    "sequence": {2: 1, 3: 1},
}


def dynamic_axes(inputs: Mapping[str, Tensor], config: Export) -> dict[str, dict[int, str]]:
    """By input the names of its free axes; axis 0 is always "batch".

    Raises UsageError for a name that no input has an axis for, or an input that there is not.
    """
    if isinstance(config.dynamic, Mapping):
        return _by_input(inputs, config.dynamic)
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in inputs}
    for wanted in config.dynamic:
        if wanted == "batch":
            continue
        places = {name: _AXES[wanted].get(x.ndim) for name, x in inputs.items()}
        if all(axis is None for axis in places.values()):
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
            raise UsageError(f"no input has a {wanted}: {shapes}", where="export.dynamic")
        for name, axis in places.items():
            if axis is not None:
                axes[name][axis] = wanted
    return axes


def dynamic_shapes(inputs: Mapping[str, Tensor], config: Export) -> tuple[dict[int, Any], ...]:
    """The same for `torch.export`, per positional argument.

    PyTorch must prove that every batch works. Other sizes may have a least or a step that it finds
    out itself (a network that halves its input twice takes no single pixel): see `check_free`.
    """
    import torch

    batch, auto = torch.export.Dim("batch"), torch.export.Dim.AUTO
    axes = dynamic_axes(inputs, config)
    return tuple({axis: auto if axis else batch for axis in axes[key]} for key in inputs)


def named_shapes(inputs: Mapping[str, Tensor], config: Export) -> tuple[dict[int, Any], ...]:
    """The same for `torch.onnx`, which calls the sizes so in the file."""
    import torch

    axes = dynamic_axes(inputs, config)
    sizes = {name: torch.export.Dim(name) for free in axes.values() for name in free.values()}
    return tuple({axis: sizes[name] for axis, name in axes[key].items()} for key in inputs)


def other_sizes(inputs: Mapping[str, Tensor], config: Export) -> dict[str, Tensor]:
    """The inputs with every free size resized: real data, repeated.

    Of token ids, of whose places a network knows no more than it was trained with, the first half.
    """
    axes = dynamic_axes(inputs, config)
    return {name: _resized(x, axes[name]) for name, x in inputs.items()}


def _resized(x: Tensor, free: Mapping[int, str]) -> Tensor:
    if not x.is_floating_point():
        short = x[:, : max(1, x.shape[1] // 2)] if 1 in free else x
        return short.repeat(2, *(1 for _ in range(1, x.ndim)))
    return x.repeat(*(2 if axis in free else 1 for axis in range(x.ndim)))


def check_free(model: Path, source: Source, config: Export) -> None:
    """Feed the ONNX file other sizes than the example's, where they are free, beside PyTorch.

    Raises UsageError where the module itself takes no such inputs, StageError where the file does
    not take them or gives something else: then those sizes are free in name only.
    """
    axes = dynamic_axes(source.inputs, config)
    names = ", ".join(dict.fromkeys(name for free in axes.values() for name in free.values()))
    where, fix = f"export.dynamic ({names})", "take the sizes that must stay out of export.dynamic"
    if set(names.split(", ")) == {"batch"}:
        return
    resized = other_sizes(source.inputs, config)
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in resized.items())
    try:
        expected = reference(source.module, resized)
    except Exception as error:
        raise UsageError(
            f"the {source.card.role} itself takes no other sizes: {type(error).__name__} for {shapes}",
            where=where,
            fix=fix,
        ) from None
    try:
        gap = difference(
            expected, onnx_outputs(model, {name: x.numpy() for name, x in resized.items()})
        )
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200]
        raise StageError(
            f"the ONNX file fails for {shapes}: {line}", where=where, fix=fix
        ) from None
    if gap > CLOSE:
        raise StageError(
            f"the ONNX file's outputs for {shapes} differ from PyTorch's by {gap:.1e} of the largest",
            where=where,
            fix=fix,
        )


def _by_input(
    inputs: Mapping[str, Tensor], given: Mapping[str, list[str | None]]
) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in inputs}
    for name, sizes in given.items():
        where = f"export.dynamic.{name}"
        if name not in inputs:
            raise UsageError(f"no such input; there are {', '.join(inputs)}", where=where)
        if len(sizes) != inputs[name].ndim:
            raise UsageError(
                f"names {len(sizes)} sizes, but its shape is {tuple(inputs[name].shape)}",
                where=where,
            )
        if sizes[0] not in (None, "batch"):
            raise UsageError(f"the first size is the batch, not {sizes[0]!r}", where=where)
        axes[name] |= {axis: size for axis, size in enumerate(sizes) if size is not None}
    return axes
