"""Taps: named places in a model, read by forward hooks; the model itself is never edited."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgekd.errors import UsageError
from edgekd.registry import suggestion

PENULTIMATE = "penultimate"
_FORMS = (
    "a tap is a module's dotted path, optionally with :input, :output.0 (of several), :attention or "
    ":scores, or penultimate"
)


# Sides that are seen where attention is called, not where a module returns.
_WATCHED = ("attention", "scores")


@dataclass(frozen=True)
class Tap:
    """Where to read: what module `path` gives or takes, or how its attention is spread.

    `attention` are the weights, `scores` what their softmax is of, before any mask.
    `item` picks from an output of several: a number, or a name.
    """

    path: str
    side: Literal["output", "input", "attention", "scores"] = "output"
    item: str | None = None


def parse(name: str, model: nn.Module) -> Tap:
    """ "layer3", "layer3.0.conv1:input", "encoder.5:output.0", "blocks.2:attention", or "penultimate".

    The last is what enters the linear layer that was registered last; `penultimate` finds the one that
    runs last. Raises UsageError naming the nearest module for one that does not exist.
    """
    if name == PENULTIMATE:
        linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UsageError(f"{type(model).__name__} has no linear layer to be penultimate to")
        return Tap(linear[-1], "input")
    path, _, side = name.partition(":")
    modules = dict(model.named_modules())
    match = re.fullmatch(r"(input|output|attention|scores)?|output\.(\w+)", side)
    if not path or path not in modules or match is None:
        raise UsageError(
            f"no tap {name!r} in {type(model).__name__}{suggestion(path, filter(None, modules))}",
            fix=_FORMS,
        )
    if match[2] is not None:
        return Tap(path, "output", match[2])
    return Tap(path, match[1] or "output")  # type: ignore[arg-type]


class Tapped:
    """Reads the taps `names` of `model` while it runs; use as a context manager."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model = model
        self.taps = {name: parse(name, model) for name in names}
        self._lengthwise = lengthwise(model)
        self._seen: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def compilable(self) -> bool:
        """Whether torch.compile can look through it: not where attention is watched call by call."""
        return all(tap.side not in _WATCHED for tap in self.taps.values())

    def __enter__(self) -> Tapped:
        """Hook the model."""
        modules = dict(self.model.named_modules())
        for name, tap in self.taps.items():
            module = modules[tap.path]
            if tap.side in _WATCHED:
                self._hooks += _watch_attention(module, self._keeper(name), tap.side)
            else:
                hook = self._keep(name, tap)
                self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))
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
            fix = None
            if self.taps[missing[0]].side in _WATCHED:
                fix = (
                    "attention is seen in nn.MultiheadAttention and in scaled_dot_product_attention"
                )
            elif self.model.training:
                fix = "what is skipped at times (stochastic depth) cannot be read; tap what always runs"
            raise UsageError(f"tap {missing[0]!r} is not reached when the model runs", fix=fix)
        return output, dict(self._seen)

    def _keeper(self, name: str) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            self._seen[name] = value

        return keep

    def _keep(self, name: str, tap: Tap):  # type: ignore[no-untyped-def]
        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> None:
            value = output
            if tap.side == "input":
                value = inputs[0] if inputs else next(iter(named.values()), None)
            elif tap.item is not None:
                value = _item(output, tap.item, name)
            if not isinstance(value, Tensor):
                raise UsageError(
                    f"tap {name!r} gives a {type(value).__name__}, not one tensor",
                    fix=f"pick one of several: {tap.path}:output.0" if tap.item is None else None,
                )
            if self._lengthwise and value.ndim == 3:
                value = value.unsqueeze(2)
            self._seen[name] = value

        return hook


def lengthwise(model: nn.Module) -> bool:
    """Whether features of three axes are signals (n, c, length), maps of height 1; or tokens (n, tokens, c).

    Signals are where convolutions over time are, and nothing that wants channels last.
    """
    modules = list(model.modules())
    channels_last = (nn.LayerNorm, nn.MultiheadAttention, nn.RNNBase)
    return any(isinstance(module, nn.Conv1d) for module in modules) and not any(
        isinstance(module, channels_last) for module in modules
    )


def _item(output: Any, item: str, name: str) -> Any:
    """One of several outputs, by number or name."""
    try:
        if isinstance(output, tuple | list):
            return output[int(item)]
        if isinstance(output, Mapping):
            return output[item]
        return getattr(output, item)
    except (ValueError, IndexError, KeyError, AttributeError):
        raise UsageError(
            f"tap {name!r}: what the module gives, a {type(output).__name__}, has no {item}"
        ) from None


def _watch_attention(
    module: nn.Module, keep: Callable[[Tensor], None], side: str
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that see softmax(q kᵀ/√d + mask) (n, heads, queries, keys) of the module's last attention.

    Or q kᵀ/√d, where `side` is "scores"; those of nn.MultiheadAttention are not to be seen.
    """
    if isinstance(module, nn.MultiheadAttention):
        if side == "scores":
            raise UsageError(
                "nn.MultiheadAttention tells its weights, not their scores", where="distill.methods"
            )
        return _watch_multihead(module, keep)
    watching: list[contextlib.ExitStack] = []

    def before(module: nn.Module, inputs: object) -> None:
        watching.append(contextlib.ExitStack())
        watching[-1].enter_context(_Watch(keep, side))

    def after(module: nn.Module, inputs: object, output: object) -> None:
        if watching:  # also where the forward pass raised
            watching.pop().close()

    # Where two watch, the one that came first is told last, as it asked first.
    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True, prepend=True),
    ]


def _watch_multihead(
    module: nn.MultiheadAttention, keep: Callable[[Tensor], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    """It is asked for the weights of every head; its caller gets what it asked for."""
    asked: list[tuple[bool, bool]] = []

    def before(module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        asked.append((named.get("need_weights", True), named.get("average_attn_weights", True)))
        return inputs, {**named, "need_weights": True, "average_attn_weights": False}

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        attended, weights = output
        keep(weights)
        need, average = asked.pop()
        return attended, (weights.mean(-3) if average else weights) if need else None

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, prepend=True),
    ]


class _Watch(TorchFunctionMode):
    """While it is on, every scaled_dot_product_attention also tells its weights."""

    def __init__(self, keep: Callable[[Tensor], None], side: str) -> None:
        super().__init__()
        self.keep = keep
        self.see = attention_weights if side == "attention" else attention_scores

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self.keep(self.see(*args, **kwargs))
        return function(*args, **kwargs)


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights (…, heads, queries, keys) that torch's function of these arguments gives values with.

    Before dropout.
    """
    scores = attention_scores(query, key, scale=scale, enable_gqa=enable_gqa)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


def attention_scores(
    query: Tensor,
    key: Tensor,
    *others: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
    **more: Any,
) -> Tensor:
    """Q kᵀ/√d (…, heads, queries, keys) of the same arguments, masked places like all others."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1)
    return scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)


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

    Of transformers, whose tokens (n, tokens, c) keep their number, the blocks that end each third; of
    signals (n, c, length) as of maps.
    Found by running `inputs` once. Maps of 1×1 are left out: they are vectors; so is what comes after a
    smaller map, as in the decoder of a U-Net, which ends in the logits.
    """
    maps: dict[tuple[int, ...], str] = {}
    tokens: dict[str, str] = {}
    signals = lengthwise(model)

    def see(path: str, name: str, value: Tensor) -> None:
        if value.ndim == 3 and not signals:
            tokens[path] = name
        elif value.ndim == (3 if signals else 4) and min(value.shape[2:]) > 1:
            smallest = min((math.prod(size) for size in maps), default=math.inf)
            if math.prod(value.shape[2:]) > smallest:
                return
            maps.pop(tuple(value.shape[2:]), None)
            maps[tuple(value.shape[2:])] = name

    _watch_run(model, inputs, see)
    found = list(_blocks(model, tokens).values())
    if found:
        ends = sorted({-(-len(found) * third // 3) for third in (1, 2, 3)})
        return [found[end - 1] for end in ends]
    return list(maps.values())


def penultimate(model: nn.Module, inputs: Tensor) -> str:
    """The tap of what enters the linear layer that runs last. Found by running `inputs` once.

    Where none is called as a module, the one registered last. Raises UsageError where there is none.
    """
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    ran: list[str] = []

    def see(path: str, name: str, value: Tensor) -> None:
        if path in linear:
            ran.append(path)

    _watch_run(model, inputs, see)
    last = ran[-1] if ran else parse(PENULTIMATE, model).path
    return f"{last}:input"


def blocks(model: nn.Module, inputs: Tensor) -> dict[str, str]:
    """The blocks of a transformer, first to last, and the tap of each one's tokens (n, tokens, c).

    Empty for other networks. Found by running `inputs` once.
    """
    if lengthwise(model):
        return {}
    tokens: dict[str, str] = {}

    def see(path: str, name: str, value: Tensor) -> None:
        if value.ndim == 3:
            tokens[path] = name

    _watch_run(model, inputs, see)
    return _blocks(model, tokens)


def _watch_run(model: nn.Module, inputs: Tensor, see: Callable[[str, str, Tensor], None]) -> None:
    """Run the model once; `see(path, tap, tensor)` is told what every module gives, the first of several."""

    def watch(path: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> None:
            name, value = path, output
            if isinstance(output, tuple | list) and output:
                name, value = f"{path}:output.0", output[0]
            if isinstance(value, Tensor):
                see(path, name, value)

        return hook

    hooks = [
        module.register_forward_hook(watch(path)) for path, module in model.named_modules() if path
    ]
    try:
        with _evaluating(model):
            model(inputs)
    finally:
        for handle in hooks:
            handle.remove()


def _blocks(model: nn.Module, tokens: dict[str, str]) -> dict[str, str]:
    """Taps of the longest list or sequence of modules of one kind that all give tokens, two at least.

    `tokens`: the modules that do, and their taps.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
        alike = len({type(child) for child in module.children()}) == 1
        if alike and len(children) >= 2 and all(child in tokens for child in children):
            found = max(found, children, key=len)
    return {path: tokens[path] for path in found}


def pair_stages(teacher: list[str], student: list[str]) -> list[tuple[str, str]]:
    """Pairs from the end, where both are most abstract: the deeper model's extra early maps go."""
    count = min(len(teacher), len(student))
    return list(zip(teacher[len(teacher) - count :], student[len(student) - count :], strict=True))
