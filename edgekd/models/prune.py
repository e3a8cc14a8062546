"""Structured pruning of a traced network, with Torch-Pruning (Fang 2023).

Its dependency graph says which channels of which layers go together, and a first-order Taylor expansion
of the loss (Molchanov 2019) which matter least. Attention loses dimensions of every head, or whole heads
(Michel 2019, Voita 2019). `models/pruned.py` writes down what is left.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import StageError, UsageError
from edgekd.models.attention import Attention, attentions
from edgekd.models.pruned import sizes

# Widths stay multiples of this, which vector instructions like.
_MULTIPLE = 4
# No layer loses more of its channels than this.
_MOST = 0.9


def require() -> None:
    """Raises UsageError when Torch-Pruning is not installed."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise UsageError(
            "pruning needs Torch-Pruning, which is not installed",
            where="search.prune",
            fix="pip install 'edgekd[prune]', or search.prune=[] to search without pruned students",
        )


def loses_heads(network: nn.Module, ratio: float) -> bool:
    """Whether `ratio` of the heads of any of its attention is one head or more."""
    return any(_spare(attention, ratio) for attention in attentions(network))


def prune(
    network: nn.Module,
    example: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    ratio: float,
    *,
    whole_heads: bool = False,
) -> nn.Module:
    """A copy of a trained `network` without about `ratio` of its channels and of its heads' dimensions.

    With `whole_heads` attention is without that share of its heads instead, rounded down; the others stay
    as they are. `example` (n, …) is a batch to trace it with; `batches` are (inputs (n, …), labels (n,))
    that importance is estimated on. The last layer keeps its outputs. Raises StageError in one line for a
    network that cannot be traced, or that does not work any more when channels of it are gone.
    """
    import torch_pruning as tp

    if whole_heads and not loses_heads(network, ratio):
        raise StageError(f"{ratio:.0%} of its attention is not one whole head")
    pruned = copy.deepcopy(network).eval().requires_grad_(True)
    found = attentions(pruned)
    heads = {layer: attention.heads for attention in found for layer in attention.layers}
    stated = [attention.stated() for attention in found]
    classes = _logits(pruned, example).shape
    try:
        with _quiet(), torch.enable_grad():
            last = _last_layer(pruned, example)
            pruner = tp.pruner.BasePruner(
                pruned,
                example,
                importance=tp.importance.GroupTaylorImportance(),
                # A transformer's blocks are all one width: what is cut is shared out evenly there.
                global_pruning=not heads,
                isomorphic=not heads,
                pruning_ratio=ratio,
                max_pruning_ratio=_MOST,
                ignored_layers=[last, *(heads if whole_heads else ())],
                round_to=max(heads.values(), default=_MULTIPLE),
                in_channel_groups={},
                out_channel_groups={},
                num_heads=heads,
            )
            _accumulate(pruned, batches)
            if whole_heads:
                for attention in found:
                    _cut_heads(pruner, attention, _spare(attention, ratio))
            pruner.step()
            for attention, names in zip(found, stated, strict=True):
                attention.restate(names)
        pruned.zero_grad(set_to_none=True)
        left = _logits(pruned, example)
    except Exception as error:
        raise StageError(
            f"cannot be pruned: {type(error).__name__}: {_first_line(error)}",
            fix="channels are found by tracing: compute shapes in forward from the inputs' shapes and "
            "the layers' sizes; or search.prune=[]",
        ) from None
    if left.shape != classes:
        raise StageError(f"pruned, it gives {tuple(left.shape)} instead of {tuple(classes)}")
    if not sizes(network, pruned):
        raise StageError("nothing of it can be pruned")
    return pruned


def _accumulate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gradients of the loss, which Taylor importance reads."""
    network.zero_grad()
    for inputs, labels in batches:
        nn.functional.cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
    # What the loss does not reach would otherwise have none.
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _spare(attention: Attention, ratio: float) -> int:
    """How many whole heads `ratio` of them is; none where queries share their keys."""
    return int(attention.heads * ratio) if attention.even else 0


def _cut_heads(pruner: Any, attention: Attention, count: int) -> None:
    """Take out the heads that matter least, with what reads them.

    Torch-Pruning's own `prune_num_heads` rounds up; where that is the last head it cuts none, and counts 0.
    """
    if not count:
        return
    layer, makes = next(iter(attention.layers.items()))
    by_head = torch.arange(layer.out_features).view(makes, attention.heads, attention.size)
    cut = pruner.DG.get_pruner_of_module(layer).prune_out_channels
    group = pruner.DG.get_pruning_group(layer, cut, list(range(layer.out_features)))
    least = pruner.importance(group)[by_head].mean((0, 2)).argsort()[:count]
    group.prune(by_head[:, least].flatten().tolist())
    setattr(attention.module, attention.attribute, attention.heads - count)


def _last_layer(network: nn.Module, example: Tensor) -> nn.Module:
    """The convolution or linear layer that is computed last: its outputs are the classes."""
    last: list[nn.Module] = []
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [
        module.register_forward_hook(lambda module, *_: last.append(module))
        for module in network.modules()
        if isinstance(module, layers)
    ]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise ValueError("it has no linear or convolutional layer")
    return last[-1]


@torch.no_grad()
def _logits(network: nn.Module, example: Tensor) -> Tensor:
    logits: Tensor = network(example)
    return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
