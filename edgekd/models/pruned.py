"""A pruned network as text, `model: pruned`: the whole network, and the sizes that differ from its own.

It is built again from that alone: without tracing, without Torch-Pruning and without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekd.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekd.models.attention import Attention

PRUNED = "pruned"
Size = int | list[int]
# By the module's name, by the name of a parameter, buffer or whole-number attribute of it: its new shape
# or value. The network itself is ".".
Sizes = dict[str, dict[str, Size]]


class Pruned(BaseModel):
    """`args` of `model: pruned`.

    `network` and `args` are the whole network's; `start` is a safetensors file with the weights that were
    left, where training starts. A network that is trained already is built without that file.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    network: str
    args: dict[str, Any] = {}
    sizes: Sizes
    start: str | None = None

    @classmethod
    def of(cls, args: Mapping[str, Any], where: str) -> Pruned:
        """Raises UsageError for anything that `edgekd search` has not written."""
        try:
            return cls.model_validate(dict(args))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UsageError(
                f"args.{key}: {first['msg'][0].lower()}{first['msg'][1:]}",
                where=f"{where} {PRUNED}",
                fix="the args of a pruned network are what `edgekd search` writes; copy them whole",
            ) from None


def sizes(whole: nn.Module, pruned: nn.Module) -> Sizes:
    """What differs in size between a network and its pruned copy, by module."""
    found: Sizes = {}
    left = dict(pruned.named_modules())
    for name, module in whole.named_modules():
        here: dict[str, Size] = {}
        for tensor, value in _tensors(module).items():
            shape = tuple(getattr(left[name], tensor).shape)
            if shape != tuple(value.shape):
                here[tensor] = list(shape)
        for attribute, number in vars(module).items():
            new = getattr(left[name], attribute)
            if attribute.startswith("_") or not _whole(number) or not _whole(new) or new == number:
                continue
            here[attribute] = list(new) if isinstance(new, tuple) else new
        if here:
            found[name or "."] = here
    return found


def resize(network: nn.Module, to: Sizes, *, where: str) -> None:
    """Give a whole network the sizes of a pruned one, with new tensors of small random values.

    Raises UsageError for a module or name that it has not, sizes that are none, and heads of attention
    that do not go with its weights.
    """
    import torch
    from torch import nn

    from edgekd.models.attention import attentions

    even = [(found, found.size, found.stated()) for found in attentions(network) if found.even]
    modules = dict(network.named_modules())
    for name, changes in to.items():
        module = modules.get("" if name == "." else name)
        for key, size in changes.items():
            known = module is not None and (
                key in _tensors(module) or _like(size, vars(module).get(key))
            )
            numbers = size if isinstance(size, list) else [size]
            if not known or not all(0 < number < 1 << 31 for number in numbers):
                raise UsageError(
                    f"the whole network has no {name}.{key} of size {size}",
                    where=where,
                    fix="the network is another than the one that was pruned: search again",
                )
            assert module is not None
            if key in module._parameters:
                old = module._parameters[key]
                assert old is not None
                new = torch.empty(numbers, dtype=old.dtype).normal_(0, 0.02)
                module._parameters[key] = nn.Parameter(new, old.requires_grad)
            elif key in module._buffers:
                # A running variance of 0 would divide by nothing.
                module._buffers[key] = torch.ones(numbers, dtype=_tensors(module)[key].dtype)
            else:
                setattr(module, key, tuple(size) if isinstance(size, list) else size)
    for attention, size, stated in even:
        fewer = attention.attribute in to.get(attention.name or ".", {})
        _check_heads(attention, size if fewer else None, stated, where)


def _check_heads(attention: Attention, size: int | None, stated: list[str], where: str) -> None:
    """Raises UsageError unless the number of heads, their size and the weights go together.

    Where heads are gone the others have the `size` they had; otherwise each may be smaller. `stated` are
    the attributes that say more of them.
    """
    wrong = next((name for name in stated if name not in attention.stated()), None)
    if not attention.even or size not in (None, attention.size):
        wrong = attention.attribute
    if wrong is not None:
        raise UsageError(
            f"{attention.name or '.'}.{wrong} is {getattr(attention.module, wrong)}: that does not go "
            f"with queries of {attention.width} features",
            where=where,
            fix="these sizes belong together: copy them whole, as `edgekd search` wrote them",
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    own = {**module._parameters, **module._buffers}
    return {name: value for name, value in own.items() if value is not None}


def _like(size: Size, value: Any) -> bool:
    """Whether `value` is a size, and of the same kind."""
    return _whole(value) and isinstance(size, list) == isinstance(value, tuple)


def _whole(value: Any) -> bool:
    """Whether it is a size: a whole number, or a tuple of them."""
    if isinstance(value, tuple):
        return bool(value) and all(_whole(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def start_file(args: Mapping[str, Any], base: Path, where: str) -> Path | None:
    """The weights that a pruned network starts from, if any. Raises UsageError when they are lost."""
    start = Pruned.of(args, where).start
    if start is None:
        return None
    path = base / start
    if not path.is_file():
        raise UsageError(
            f"no such file: {path}",
            where=f"{where} {PRUNED}: args.start",
            fix="it is in the folder of `edgekd search`; search again, or take `start` out: then it is "
            "trained from random weights",
        )
    return path
