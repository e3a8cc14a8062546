"""What the weights of a written file are stored in: a quantizer leaves alone what it does not know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.results import ExportedFile

if TYPE_CHECKING:
    from onnx import GraphProto

# Less of the weights than this in another type is no news.
_SHARE = 0.02


def notes_on(made: ExportedFile, source: ExportedFile, path: Path) -> tuple[str, ...]:
    """What a user would not expect of the quantized file `path`: sizes and types, in words."""
    said = []
    stored = stored_weights(made.format, path)
    whole, expected = sum(stored.values()), made.variant
    others = {kind: n for kind, n in stored.items() if kind != expected and n > _SHARE * whole}
    if others:
        shares = ", ".join(f"{n / whole:.0%} in {kind}" for kind, n in sorted(others.items()))
        said.append(f"of the weights {stored[expected] / whole:.0%} are in {expected}, {shares}")
    if made.size >= source.size:
        said.append(
            f"with {made.size:,} bytes it is not smaller than in float32 ({source.size:,} bytes)"
        )
    return tuple(said)


def stored_weights(format: str, path: Path) -> Counter[str]:
    """How many weights are stored as "f32", "f16", "int8", "int4": tensors of two dimensions or more.

    Biases, scales and zero points of channels are none.
    """
    if format == "onnx":
        import onnx

        return _onnx(onnx.load(path).graph)
    import openvino

    return _openvino(openvino.Core().read_model(path))


def _onnx(graph: GraphProto) -> Counter[str]:
    from onnx import TensorProto

    kinds = {
        TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16",
        TensorProto.INT8: "int8", TensorProto.UINT8: "int8",
        TensorProto.INT4: "int4", TensorProto.UINT4: "int4",
    }  # fmt: skip
    # ONNX Runtime packs the weights of a product into bytes.
    packed = {
        node.input[1]: next(a.i for a in node.attribute if a.name == "bits")
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    beside = {
        name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input[2:]
    }
    found: Counter[str] = Counter()
    for tensor in graph.initializer:
        kind = kinds.get(tensor.data_type)
        if kind is None or tensor.name in beside or not _is_weight(tensor.dims):
            continue
        bits = packed.get(tensor.name, 8)
        found[f"int{bits}" if tensor.name in packed else kind] += math.prod(tensor.dims) * 8 // bits
    return found


def _openvino(model: Any) -> Counter[str]:
    kinds = {"f32": "f32", "f16": "f16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}
    found: Counter[str] = Counter()
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        kind, shape = kinds.get(node.get_element_type().get_type_name()), list(node.get_shape())
        if kind is not None and _is_weight(shape):
            found[kind] += math.prod(shape)
    return found


def _is_weight(shape: Sequence[int]) -> bool:
    """More than one dimension is larger than 1."""
    return sum(size > 1 for size in shape) > 1
