"""A student that begins with parts of its teacher: DistilBERT's recipe (Sanh 2019, §2, arXiv 1910.01108)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.config.schema import Start
from edgekd.errors import UsageError
from edgekd.models.huggingface import Classifier
from edgekd.models.zoo.bert import Bert

_WHERE = "student.start"
# Where transformers' BERT has the parts of a layer of ours.
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


@torch.no_grad()
def start_from(student: nn.Module, teacher: nn.Module, start: Start) -> None:
    """Fill `student`, a zoo:bert, with what `start` says of `teacher`; `share` also freezes it.

    The embeddings of a wider teacher are projected on their first principal directions, so that as
    much as can be of what tells tokens apart is kept. Raises UsageError where parts do not fit.
    """
    if not isinstance(student, Bert):
        raise UsageError(f"is for students of zoo:bert, not {type(student).__name__}", where=_WHERE)
    theirs = _as_ours(teacher)
    if start.embeddings is not None:
        _embeddings(student, theirs)
    if start.embeddings == "share":
        student.tokens.requires_grad_(False)
    if start.layers is not None:
        _layers(student, teacher, theirs, start.layers)


def _embeddings(student: Bert, theirs: Mapping[str, Tensor]) -> None:
    own, given = student.tokens.weight, theirs["tokens.weight"]
    places = theirs["positions.weight"][: len(student.positions.weight)]
    if len(given) < len(own) or len(places) < len(student.positions.weight):
        raise UsageError(
            f"the teacher has embeddings of {len(given)} tokens and {len(places)} places, the student "
            f"of {len(own)} and {len(student.positions.weight)}",
            where=f"{_WHERE}.embeddings",
        )
    given, narrower = given[: len(own)], own.shape[1] < given.shape[1]
    if own.shape[1] > given.shape[1]:
        raise UsageError(
            f"the teacher's are {given.shape[1]} wide, the student's {own.shape[1]}",
            where=f"{_WHERE}.embeddings",
            fix=f"set student.args.dim to {given.shape[1]} or less",
        )
    if narrower:
        directions = torch.linalg.svd(given - given.mean(0), full_matrices=False).Vh
        basis = directions[: own.shape[1]].T
        given, places = given @ basis, places @ basis
    else:
        student.norm.weight.copy_(theirs["norm.weight"])
        student.norm.bias.copy_(theirs["norm.bias"])
    own.copy_(given)
    student.positions.weight.copy_(places)


def _layers(
    student: Bert, teacher: nn.Module, theirs: Mapping[str, Tensor], layers: Sequence[int] | str
) -> None:
    where, depth = f"{_WHERE}.layers", len(student.layers)
    count = 1 + max((int(n.split(".")[1]) for n in theirs if n.startswith("layers.")), default=-1)
    chosen = (
        [-(-count * m // depth) - 1 for m in range(1, depth + 1)]
        if isinstance(layers, str)
        else layers
    )
    if len(chosen) != depth or not all(0 <= layer < count for layer in chosen):
        raise UsageError(
            f"{list(chosen)} should be {depth} of the teacher's layers 0 to {count - 1}",
            where=where,
        )
    if _heads(teacher) != student.layers[0].heads:
        raise UsageError(
            f"the teacher's layers have {_heads(teacher)} heads, the student's "
            f"{student.layers[0].heads}",
            where=where,
            fix=f"set student.args.heads to {_heads(teacher)}",
        )
    parts = {f"layers.{m}.": f"layers.{layer}." for m, layer in enumerate(chosen)}
    taken = {"pooler.weight", "pooler.bias", "fc.weight", "fc.bias"}
    for name, own in student.state_dict().items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if prefix is None and name not in taken:
            continue
        given = theirs.get(name.replace(prefix, parts[prefix], 1) if prefix else name)
        if given is None or given.shape != own.shape:
            shape = "nothing" if given is None else tuple(given.shape)
            raise UsageError(
                f"the student's {name} is {tuple(own.shape)}, of the teacher's there is {shape}",
                where=where,
                fix="whole layers fit where both have the same dim, and 4 · dim between; "
                "without layers the embeddings alone are taken",
            )
        own.copy_(given)


def _heads(teacher: Any) -> int:
    """Of a teacher that `_as_ours` knows."""
    ours = isinstance(teacher, Bert)
    heads: int = teacher.layers[0].heads if ours else teacher.model.config.num_attention_heads
    return heads


def _as_ours(teacher: nn.Module) -> dict[str, Tensor]:
    """The weights of a BERT under the names that zoo:bert has for them."""
    if isinstance(teacher, Bert):
        return teacher.state_dict()
    model = teacher.model if isinstance(teacher, Classifier) else None
    config: Any = getattr(model, "config", None)
    if model is None or getattr(config, "model_type", None) != "bert":
        raise UsageError(
            "takes parts of BERT only (model_type: bert, or zoo:bert), and the teacher is a "
            f"{type(model or teacher).__name__}",
            where=_WHERE,
            fix="leave it out",
        )
    state = model.state_dict()
    ours = {
        "tokens.weight": state["bert.embeddings.word_embeddings.weight"],
        # Texts are one segment: what tells it from a second one is the same everywhere.
        "positions.weight": state["bert.embeddings.position_embeddings.weight"]
        + state["bert.embeddings.token_type_embeddings.weight"][0],
    }
    names = {"norm": "bert.embeddings.LayerNorm", "pooler": "bert.pooler.dense", "fc": "classifier"}
    for layer in range(config.num_hidden_layers):
        names |= {
            f"layers.{layer}.{own}": f"bert.encoder.layer.{layer}.{theirs}"
            for own, theirs in _LAYER.items()
        }
    for own, theirs in names.items():
        for kind in ("weight", "bias"):
            ours[f"{own}.{kind}"] = state[f"{theirs}.{kind}"]
    if teacher.order is not None:
        for kind in ("weight", "bias"):
            ours[f"fc.{kind}"] = ours[f"fc.{kind}"][teacher.order]
    return ours
