"""Several processes that train one model together, as `torchrun --nproc-per-node 2 -m edgekd` starts them.

Each takes its share of every batch; gradients, batch statistics and losses are averaged in one
exchange per step, so that all hold the same weights. Only the first one writes and tells.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


def join() -> None:
    """Meet the others. On one machine without GPUs they talk over gloo."""
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # gloo also carries the small messages of CPU tensors; nccl those on GPUs.
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            # The others wait while the first one exports or measures.
            timeout=datetime.timedelta(days=7),
        )


def leave() -> None:
    """Part from the others, at the end."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """Which of them this process is; 0 leads."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def told(value: T) -> T:
    """The leader's value, in every process."""
    if count() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Everybody's value, by rank."""
    if count() == 1:
        return [value]
    box: list[Any] = [None] * count()
    distributed.all_gather_object(box, value)
    return box


def share(indices: Tensor) -> Tensor:
    """The part of a batch that is x."""
    return indices if count() == 1 else indices[rank() :: count()]


@torch.no_grad()
def average(model: nn.Module, also: Iterable[Tensor]) -> None:
    """Replace gradients, float buffers (batch statistics) and the tensors `also` by their means."""
    if count() == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    tensors = [*grads, *buffers, *also]
    flat = torch.cat([tensor.reshape(-1).to(torch.float32) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= count()
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))
