"""Structured pruning of a traced network, with Torch-Pruning (Fang 2023).

Its dependency graph says which channels of which layers go together, and a first-order Taylor expansion
of the loss (Molchanov 2019) which matter least. `models/pruned.py` writes down what is left.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from edgekd.errors import StageError, UsageError
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


def prune(
    network: nn.Module, example: Tensor, batches: Iterable[tuple[Tensor, Tensor]], ratio: float
) -> nn.Module:
    """A copy of a trained `network` without about `ratio` of its channels and of its heads' dimensions.

    `example` (n, …) is a batch to trace it with; `batches` are (inputs (n, …), labels (n,)) that importance
    is estimated on. The last layer keeps its outputs. Raises StageError in one line for a network that
    cannot be traced, or that does not work any more when channels of it are gone.
    """
    import torch_pruning as tp

    pruned = copy.deepcopy(network).eval().requires_grad_(True)
    heads = _heads(pruned)
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
                ignored_layers=[last],
                round_to=max(heads.values(), default=_MULTIPLE),
                in_channel_groups={},
                out_channel_groups={},
                num_heads=heads,
            )
            _accumulate(pruned, batches)
            pruner.step()
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


def _heads(network: nn.Module) -> dict[nn.Module, int]:
    """The linear layers that make queries, keys and values, with their number of heads.

    Attention is a module that says how many heads it has and holds such layers itself.
    """
    found: dict[nn.Module, int] = {}
    for module in network.modules():
        counts = [getattr(module, name, None) for name in ("num_heads", "heads", "n_heads")]
        count = next((c for c in counts if isinstance(c, int) and c > 0), None)
        if count is None:
            continue
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and _makes_heads(name):
                found[child] = count
    return found


def _makes_heads(name: str) -> bool:
    plain = name.lower().replace("_", "").removesuffix("proj").removesuffix("lin")
    return plain in ("q", "k", "v", "qkv", "query", "key", "value", "inproj", "kv")


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
