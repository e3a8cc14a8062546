"""Several processes that train one model together, as `torchrun --nproc-per-node 2 -m edgekd` starts them.

Each takes its share of every batch; gradients, batch statistics and losses are averaged in one
exchange per step, so that all hold the same weights. Only the first one writes and tells.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from edgekd.errors import StageError

T = TypeVar("T")
# Whether the first process does something that the others have no part in.
_apart = False


class Lost(StageError):
    """Another process is not there any more; why is for itself to say, if it still could."""


@dataclass(frozen=True)
class Failure:
    """Which process failed, what it ends with, and what it says."""

    rank: int
    code: int
    text: str


def join() -> None:
    """Meet the others. On one machine without GPUs they talk over gloo."""
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with _all_there():
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
    return distributed.get_rank() if _met() else 0


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if _met() else 1


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What the first process does here by itself, training too: the others wait and hear nothing."""
    global _apart  # noqa: PLW0603
    _apart = True
    try:
        yield
    finally:
        _apart = False


def _met() -> bool:
    return distributed.is_initialized() and not _apart


def told(value: T) -> T:
    """The leader's value, in every process."""
    if count() == 1:
        return value
    box = [value]
    with _all_there():
        distributed.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Everybody's value, by rank."""
    if count() == 1:
        return [value]
    box: list[Any] = [None] * count()
    with _all_there():
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
    with _all_there():
        distributed.all_reduce(flat)
    flat /= count()
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def first_failure(failure: Failure) -> Failure | None:
    """The one of this process, or that of another which failed before it. None: there is none to ask.

    The others are told by the store at which torchrun lets them meet: it outlives each of them.
    """
    if not (
        distributed.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):
        return None  # the first process has the store, and it may be gone
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=datetime.timedelta(seconds=10),
        )
        # torchrun may have started all of them again, with the same store.
        key = f"edgekd/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        first = store.compare_set(key, "", json.dumps(asdict(failure)))
    except (KeyError, ValueError, RuntimeError):
        return None
    return Failure(**json.loads(first))


@contextlib.contextmanager
def _all_there() -> Iterator[None]:
    """Around what needs every process. Raises Lost where one of them has gone."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own, but names its source file.
        if isinstance(error, distributed.DistError) or "gloo/" in str(error):
            raise Lost(
                "another process of this training is gone: it was killed, or cannot be reached",
                fix="run the same command again to go on from here",
            ) from None
        raise
