"""What a runtime would execute for a model, with shapes, found out here without timing anything.

The model is compiled on this machine by the same runtime: its fused operators and layouts are those
that a device with the same instructions has.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgekd.errors import StageError

Shape = tuple[int, ...]
_MOST_SHAPES = 1000


class Step(BaseModel):
    """One executed operator. `inputs` are activations, `weights` constants, of the shapes given.

    `kernel` is what the runtime calls its implementation, if it says so; `fused` how many operators
    of the file it does, `activation` which function is applied at its end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=1000)
    type: str = Field(max_length=200)
    kernel: str = Field("", max_length=200)
    inputs: tuple[Shape, ...] = Field((), max_length=_MOST_SHAPES)
    weights: tuple[Shape, ...] = Field((), max_length=_MOST_SHAPES)
    outputs: tuple[Shape, ...] = Field((), max_length=_MOST_SHAPES)
    fused: int = Field(1, ge=0, le=100_000)
    activation: str = Field("", max_length=200)


def executed_steps(
    path: Path, runtime: str, shape: Shape, *, threads: int, precision: str
) -> list[Step]:
    """The operators for inputs (batch, …) of `shape`, in order. Raises StageError."""
    from edgekd.profile.device.runtimes import RUNTIMES

    if runtime not in _COMPILERS:
        raise StageError(
            f"what {runtime} would execute cannot be found out here", where=str(path),
            fix=f"runtimes that latency is predicted for: {', '.join(_COMPILERS)}",
        )  # fmt: skip
    try:
        # Refuses a precision that this machine cannot compile for.
        RUNTIMES[runtime].session(str(path), threads, precision)
        return _COMPILERS[runtime](path, shape, threads, precision)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise StageError(f"{runtime} cannot compile it: {reason}", where=str(path)) from None


def input_shape(path: Path, runtime: str, batch_size: int) -> Shape:
    """The shape of a model's only input, where the sizes left open are the batch. Raises StageError."""
    dims = _OPENERS[runtime](path)
    if any(dim is None for dim in dims[1:]):
        raise StageError("an axis of the input besides the batch has no size", where=str(path))
    return tuple(batch_size if dim is None else dim for dim in dims)


def _onnxruntime(path: Path, shape: Shape, threads: int, precision: str) -> list[Step]:
    """The optimized graph, with the shapes that one inference of zeros has."""
    import onnx

    from edgekd.profile.device.runtimes.onnxruntime import _open

    with tempfile.TemporaryDirectory(prefix="edgekd-steps-") as folder:
        file = Path(folder, "optimized.onnx")
        session = _open(
            str(path), threads, enable_profiling=True, optimized_model_filepath=str(file),
            profile_file_prefix=str(Path(folder, "trace")),
        )  # fmt: skip
        entry = session.get_inputs()[0]
        session.run(None, {entry.name: np.zeros(shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = onnx.load(file, load_external_data=False).graph
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    written = {
        (e["name"].removesuffix("_kernel_time"), e["args"]["op_name"]): [
            tuple(dims) for value in e["args"]["output_type_shape"] for dims in value.values()
        ]
        for e in events
        if e["cat"] == "Node" and e["name"].endswith("_kernel_time")
    }
    shapes: dict[str, Shape] = {entry.name: shape}
    steps = []
    for node in graph.node:
        outputs = written.get((node.name, node.op_type))
        if outputs is None:
            continue
        shapes.update(zip([name for name in node.output if name], outputs, strict=False))
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        activation = attributes.get("activation", b"")
        # NCHWc convolutions are other code than plain ones.
        steps.append(
            Step(
                name=node.name,
                type=node.op_type,
                kernel=node.domain.rpartition(".")[2],
                inputs=tuple(shapes[name] for name in node.input if name in shapes),
                weights=tuple(weights[name] for name in node.input if name in weights),
                outputs=tuple(outputs),
                activation=activation.decode() if isinstance(activation, bytes) else "",
            )
        )
    return steps


def _openvino(path: Path, shape: Shape, threads: int, precision: str) -> list[Step]:
    """The plug-in's runtime model; sizes that it leaves open are the batch."""
    from edgekd.profile.device.runtimes.openvino import _compile

    compiled = _compile(str(path), threads, precision)
    batch = shape[0]

    def sizes(port: Any) -> Shape:
        return tuple(
            dim.get_length() if dim.is_static else batch for dim in port.get_partial_shape()
        )

    steps = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = _said(node)
        kind = info.get("layerType", "Const")
        if kind in ("Const", "Input", "Output"):
            continue
        inputs: list[Shape] = []
        weights: list[Shape] = []
        for port in node.input_values():
            constant = _said(port.get_node()).get("layerType", "Const") == "Const"
            (weights if constant else inputs).append(sizes(port))
        steps.append(
            Step(
                name=node.get_friendly_name(),
                type=kind,
                kernel=info.get("primitiveType", ""),
                inputs=tuple(inputs),
                weights=tuple(weights),
                outputs=tuple(sizes(port) for port in node.outputs()),
                fused=len([t for t in info.get("originalLayersNames", "").split(",") if t]),
            )
        )
    return steps


def _said(node: Any) -> dict[str, str]:
    return {key: str(getattr(v, "value", v)) for key, v in node.get_rt_info().items()}


def _onnx_input(path: Path) -> list[int | None]:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {weight.name for weight in graph.initializer}
    entries = [entry for entry in graph.input if entry.name not in weights]
    if len(entries) != 1:
        raise StageError(f"it has {len(entries)} inputs; should have one", where=str(path))
    dims = entries[0].type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


def _openvino_input(path: Path) -> list[int | None]:
    import openvino

    model = openvino.Core().read_model(path)
    if len(model.inputs) != 1:
        raise StageError(f"it has {len(model.inputs)} inputs; should have one", where=str(path))
    shape = model.inputs[0].get_partial_shape()
    return [dim.get_length() if dim.is_static else None for dim in shape]


_COMPILERS: dict[str, Callable[[Path, Shape, int, str], list[Step]]] = {
    "onnxruntime": _onnxruntime, "openvino": _openvino,
}  # fmt: skip
_OPENERS: dict[str, Callable[[Path], list[int | None]]] = {
    "onnxruntime": _onnx_input, "openvino": _openvino_input,
}  # fmt: skip


def elements(shapes: Iterable[Shape]) -> int:
    """How many values tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes)
