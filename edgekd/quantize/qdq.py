"""Surgery on ONNX graphs with QuantizeLinear and DequantizeLinear: one function, told layer by layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def layers(model: ModelProto) -> tuple[str, ...]:
    """The names of the nodes that compute on quantized values, in the order of the graph."""
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type not in _PAIR and dequantized & set(node.input)
    )


def reverted(quantized: ModelProto, original: ModelProto, keep: Collection[str]) -> ModelProto:
    """A copy of `quantized` in which the layers `keep` read float32 again, weights from `original`.

    A layer whose input was rescaled (SmoothQuant) keeps its INT8 weights, which fit that input.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {tensor.name: tensor for tensor in original.graph.initializer}
    before = {node.name: node for node in original.graph.node}
    wanted: dict[str, TensorProto] = {}
    for node in model.graph.node:
        if node.name not in keep or node.name not in before:
            continue
        source = before[node.name]
        sources = [_float_source(name, made, constants) for name in node.input]
        rescaled = any(
            found is not None and found != was and was not in known
            for found, was in zip(sources, source.input, strict=False)
        )
        for position, was in enumerate(source.input):
            if was in known:
                if not rescaled:
                    node.input[position] = f"{was}/f32"
                    wanted[was] = known[was]
            elif (found := sources[position]) is not None:
                node.input[position] = found
    for name, tensor in wanted.items():
        copied = model.graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = f"{name}/f32"
    _drop_unused(model)
    return model


def with_float_outputs(model: ModelProto) -> ModelProto:
    """A copy whose outputs are what was computed, not quantized once more at the very end."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    made = {name: node for node in copied.graph.node for name in node.output}
    for output in copied.graph.output:
        found = _float_source(output.name, made, {})
        if found is None or found not in made:
            continue
        made[output.name].output[0] = f"{output.name}/quantized"
        for node in copied.graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == found:
                        names[position] = output.name
    _drop_unused(copied)
    return copied


def _float_source(
    name: str, made: dict[str, NodeProto], constants: dict[str, TensorProto]
) -> str | None:
    """What a dequantized value was before it was quantized; None for others and for constants."""
    node = made.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] in constants:
        return None
    before = made.get(node.input[0])
    if before is None or before.op_type != "QuantizeLinear" or before.input[0] in constants:
        return None
    return str(before.input[0])


def _drop_unused(model: ModelProto) -> None:
    """Nodes whose results nobody reads, and initializers likewise."""
    needed = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
            needed |= {name for a in node.attribute for name in _names_in(a)}
    kept.reverse()
    tensors = [t for t in model.graph.initializer if t.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(tensors)


def _names_in(attribute: object) -> set[str]:
    """What the branches and loops in an attribute read from outside."""
    graphs = [attribute.g, *attribute.graphs]  # type: ignore[attr-defined]
    return {
        name
        for graph in graphs
        for node in graph.node
        for name in {*node.input, *(n for a in node.attribute for n in _names_in(a))}
    }


def with_integer_weights(model: ModelProto) -> ModelProto:
    """A copy with every quantized constant stored as the integers that it becomes."""
    import onnx
    from onnx import numpy_helper

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in constants:
            kept.append(node)
            continue
        weight, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if d == axis else 1 for d in range(weight.ndim)] if scale.ndim else []
        # As QuantizeLinear is defined: half to even, then the zero point, then saturation.
        levels = np.rint(weight / scale.reshape(shape)) + zero.reshape(shape)
        limits = np.iinfo(zero.dtype)
        integers = levels.clip(limits.min, limits.max).astype(zero.dtype)
        graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unused(copied)
    return copied
