"""Where the time goes: what the device's profilers said, mapped back to the file and to PyTorch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekd.errors import StageError
from edgekd.profile.costs import Graph, costs, read_graph, traffic
from edgekd.results import (
    Costs,
    ExportedFile,
    Operator,
    OperatorProfile,
    OperatorsReport,
    Provenance,
    Roofline,
)

# Endings that the runtimes give to the names of what they made of an operator.
_MARKS = re.compile(r"(_token_\d+|_nchwc)$")
_MOST_OPERATORS = 20_000
_MOST_NAMES = 1000
_MOST_ROOFLINES = 16


class Executed(BaseModel):
    """One operator as the device reports it, see `device/operators.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(max_length=1000)
    type: str = Field(max_length=200)
    kernel: str = Field("", max_length=200)
    seconds: float | None = Field(None, ge=0)
    inputs: tuple[str, ...] = Field((), max_length=_MOST_NAMES)
    outputs: tuple[str, ...] = Field((), max_length=_MOST_NAMES)
    origins: tuple[str, ...] = Field((), max_length=_MOST_NAMES)


class _Trace(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    runs: int = Field(ge=1)
    wall: float = Field(gt=0)
    operators: tuple[Executed, ...] = Field(max_length=_MOST_OPERATORS)


# What one target's device said of its files: (file, runtime) in order, and its result.json.
Said = tuple[str, list[tuple[ExportedFile, str]], Mapping[str, Any], Provenance]


def operators_report(
    files: Iterable[ExportedFile],
    said: Iterable[Said],
    root: Path,
    batch_size: int,
    sample: Sequence[int] = (),
) -> OperatorsReport:
    """The costs of `files` (paths below `root`) and what every target said of their operators.

    `sample` is the shape of one input, for files that take any. What is not available, of a file, a
    runtime or a device, becomes a note.
    """
    notes: list[str] = []
    graphs: dict[tuple[str, str], Graph] = {}
    paper: list[Costs] = []
    for file in files:
        if file.format != "onnx":
            continue
        try:
            graph = read_graph(root / file.path, batch_size, sample)
        except StageError as error:
            notes.append(str(error))
            continue
        graphs[file.role, file.variant] = graph
        paper.append(
            costs(
                graph, role=file.role, variant=file.variant, path=file.path, batch_size=batch_size
            )
        )
    if not paper and not notes:
        notes.append(
            "operations, bytes and PyTorch modules are unknown: the run has no ONNX file (export.formats)"
        )
    profiles: list[OperatorProfile] = []
    rooflines: list[Roofline] = []
    for target, entries, result, provenance in said:
        for file, runtime in entries:
            # The layers of a quantized file bear the names of the original's.
            made_of = graphs.get((file.role, file.variant)) or graphs.get((file.role, "f32"))
            words = _section(result, "operators").get(f"{target}/{runtime}/{file.name}")
            profiles.append(_profile(file, runtime, target, batch_size, words, made_of))
        for name, words in itertools.islice(_section(result, "rooflines").items(), _MOST_ROOFLINES):
            try:
                rooflines.append(_roofline(target, provenance, words))
            except ValueError as error:
                notes.append(f"{target}: no roofline of {name[:100]}: {_reason(error)}")
    notes += [
        f"{p.target}: the operators of the {p.role} ({p.variant}) in {p.runtime} are not available: "
        f"{p.error}"
        for p in profiles
        if p.error
    ]
    return OperatorsReport(
        costs=tuple(paper),
        profiles=tuple(profiles),
        rooflines=tuple(rooflines),
        notes=tuple(notes),
    )


def _profile(
    file: ExportedFile,
    runtime: str,
    target: str,
    batch_size: int,
    words: object,
    graph: Graph | None,
) -> OperatorProfile:
    """One file's operators; with the reason instead where there are none."""
    runs, wall, reason = 0, 0.0, ""
    operators: tuple[Operator, ...] = ()
    try:
        trace = _Trace.model_validate(_told(words))
    except ValueError as error:
        reason = _reason(error)
    else:
        runs, wall, operators = trace.runs, trace.wall, attribute(trace.operators, graph)
    return OperatorProfile(
        role=file.role,
        format=file.format,
        variant=file.variant,
        runtime=runtime,
        target=target,
        batch_size=batch_size,
        runs=runs,
        wall=wall,
        operators=operators,
        error=reason,
    )


def _roofline(target: str, provenance: Provenance, words: object) -> Roofline:
    values = {key: value for key, value in _told(words).items() if key != "cached"}
    return Roofline.model_validate({**values, "target": target, "provenance": provenance})


def _section(result: Mapping[str, Any], name: str) -> dict[str, object]:
    section = result.get(name)
    return section if isinstance(section, dict) else {}


def _told(words: object) -> dict[str, Any]:
    if not isinstance(words, dict):
        raise ValueError("the device says nothing of it")
    if "error" in words:
        raise ValueError(str(words["error"]))
    return words


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
    return " ".join(str(error).split())[:300]


def attribute(executed: tuple[Executed, ...], graph: Graph | None) -> tuple[Operator, ...]:
    """What took time, with the file's operators that each does, their costs and their module.

    An executed operator is found in the file by its tensors or by the names that it came from; it
    does all that leads there and no other executed operator does. One that the runtime put in
    between (such as a change of layout) belongs to the module that reads its result.
    """
    if graph is None:
        return tuple(
            _operator(entry, None, None, None, ())
            for entry in executed
            if entry.seconds is not None
        )
    done = _cover(executed, graph)
    needed = _needed(graph, done)
    modules = [_module(graph, nodes) for nodes in done]
    for position in reversed(range(len(executed))):
        if modules[position] is None:
            modules[position] = _neighbour(executed, modules, position)
    return tuple(
        _operator(
            entry,
            module,
            sum(graph.nodes[i].flops for i in nodes) if nodes else None,
            traffic(graph, [graph.nodes[i] for i in nodes], needed) if nodes else None,
            tuple(graph.nodes[i].name for i in nodes),
        )
        for entry, nodes, module in zip(executed, done, modules, strict=True)
        if entry.seconds is not None
    )


def _operator(
    entry: Executed,
    module: str | None,
    flops: float | None,
    size: int | None,
    nodes: tuple[str, ...],
) -> Operator:
    assert entry.seconds is not None
    return Operator(
        name=entry.name, type=entry.type, kernel=entry.kernel, module=module,
        seconds=entry.seconds, flops=flops, bytes=size, nodes=nodes,
    )  # fmt: skip


def _cover(executed: tuple[Executed, ...], graph: Graph) -> list[list[int]]:
    """For every executed operator the positions in the graph of those that it does, sorted."""
    makers = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    names = {node.name: i for i, node in enumerate(graph.nodes) if node.name}

    def find(text: str) -> int | None:
        while text:
            found = makers.get(text, names.get(text))
            if found is not None:
                return found
            shorter = _MARKS.sub("", text)
            text = shorter if shorter != text else text.rpartition("/")[0]
        return None

    ends = [
        sorted({i for text in (*e.outputs, *e.origins, e.name) if (i := find(text)) is not None})
        for e in executed
    ]
    owned = {i for mine in ends for i in mine}
    taken: set[int] = set()
    done: list[list[int]] = []
    for mine in ends:
        nodes: list[int] = []
        waiting = [i for i in mine if i not in taken]
        while waiting:
            i = waiting.pop()
            if i in taken:
                continue
            taken.add(i)
            nodes.append(i)
            before = {makers[name] for name in graph.nodes[i].inputs if name in makers}
            waiting += [j for j in before if j not in owned]
        done.append(sorted(nodes))
    return done


def _needed(graph: Graph, done: list[list[int]]) -> frozenset[str]:
    """Tensors that pass from one executed operator to another, or out of the model."""
    owner = {i: position for position, nodes in enumerate(done) for i in nodes}
    makers = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    passed = {
        name
        for i, node in enumerate(graph.nodes)
        for name in node.inputs
        if name in makers and owner.get(makers[name]) != owner.get(i)
    }
    return frozenset(passed | set(graph.outputs))


def _module(graph: Graph, nodes: list[int]) -> str | None:
    """That of the operator that costs the most."""
    known = [graph.nodes[i] for i in nodes if graph.nodes[i].module is not None]
    return max(known, key=lambda node: node.flops).module if known else None


def _neighbour(
    executed: tuple[Executed, ...], modules: list[str | None], position: int
) -> str | None:
    """The module of what reads the result, or else of what made the input."""
    entry = executed[position]
    readers = (
        modules[i]
        for i in range(position + 1, len(executed))
        if set(executed[i].inputs) & set(entry.outputs)
    )
    makers = (modules[i] for i in range(position) if set(executed[i].outputs) & set(entry.inputs))
    return next((m for m in (*readers, *makers) if m is not None), None)
