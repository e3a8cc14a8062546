"""A simpler ONNX graph through onnxslim, kept only where it is simpler and computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.export.agreement import CLOSE, difference, onnx_outputs, reference
from edgekd.export.exporter import Source

if TYPE_CHECKING:
    import onnx


def simplify(model: onnx.ModelProto, source: Source) -> tuple[onnx.ModelProto, str]:
    """The simplified model, or the given one, and in words which and why.

    `model` must hold its weights. Compared on the source's example, all of it and one sample.
    """
    import onnx
    import onnxslim

    try:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        slim = onnxslim.slim(copy)
    except Exception as error:
        return model, f"not simplified: onnxslim failed with {type(error).__name__}"
    before, after = len(model.graph.node), len(slim.graph.node)
    if after >= before:
        return model, f"not simplified: onnxslim finds nothing to remove from {before} operators"
    gap = _gap(slim, source)
    if gap > CLOSE:
        return model, f"not simplified: onnxslim changes the outputs by {gap:.1e} of the largest"
    _keep_origins(slim, model)
    return slim, f"simplified by onnxslim: {after} operators instead of {before}"


def _gap(model: onnx.ModelProto, source: Source) -> float:
    data, expected = model.SerializeToString(), reference(source.module, source.inputs)
    inputs = {name: x.numpy() for name, x in source.inputs.items()}
    try:
        whole = onnx_outputs(data, inputs)
        single = onnx_outputs(data, {name: x[:1] for name, x in inputs.items()})
    except Exception:
        return float("inf")
    return max(difference(expected, whole), difference([y[:1] for y in expected], single))


def _keep_origins(slim: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Give every node that is left the PyTorch module that it came from: onnxslim drops that."""
    origins = {node.name: node.metadata_props for node in model.graph.node}
    for node in slim.graph.node:
        if not node.metadata_props:
            node.metadata_props.extend(origins.get(node.name, ()))
