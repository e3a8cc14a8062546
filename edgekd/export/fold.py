"""Preprocessing at the front of a finished file, and softmax or argmax at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekd.artifacts import atomic_files
from edgekd.config.schema import Export
from edgekd.export import metadata
from edgekd.results import InputSpec

if TYPE_CHECKING:
    import onnx

InputType = Literal["uint8", "float32", "int64"]
# What the output is called.
OUTPUTS = {"logits": "logits", "softmax": "probabilities", "argmax": "class"}


def fold_onnx(
    source: Path, path: Path, config: Export, spec: InputSpec, raw: InputType
) -> tuple[Path, ...]:
    """Write the ONNX file `source` (one input, one output) as one that takes and gives what
    `config.preprocessing` and `config.output` say; returns its parts.

    Its input keeps its name; (raw / scale − mean) / std is one Mul and one Add, in float32 and
    with the same factors as the data pipeline.
    """
    import onnx

    from edgekd.export.formats.onnx import save_onnx

    external = source.with_name(f"{source.name}.data").is_file()
    model = onnx.load(source)
    if config.preprocessing == "fold":
        _prepend(model.graph, spec, raw)
    if config.output != "logits":
        _append(model.graph, config.output)
    metadata.set_onnx(model, _about(config, raw))
    onnx.checker.check_model(model)
    names = (path.name, f"{path.name}.data") if external else (path.name,)
    with atomic_files(path.parent, names) as temporary:
        save_onnx(model, temporary / path.name, external=external)
    return tuple(path.with_name(name) for name in names)


def fold_openvino(
    source: Path, path: Path, config: Export, spec: InputSpec, raw: InputType
) -> tuple[Path, ...]:
    """The same for an IR, through OpenVINO's own preprocessing steps."""
    import openvino

    from edgekd.export.formats.openvino import save

    model = openvino.Core().read_model(source)
    (value,) = model.inputs
    inputs, rank = value.get_names(), value.partial_shape.rank.get_length()
    steps = openvino.preprocess.PrePostProcessor(model)
    if config.preprocessing == "fold":
        steps.input().tensor().set_element_type(getattr(openvino.Type, _OPENVINO[raw]))
        steps.input().model().set_layout(openvino.Layout("NC" + "?" * (rank - 2)))
        chain = steps.input().preprocess().convert_element_type(openvino.Type.f32)
        chain.mean([spec.scale * m for m in spec.mean]).scale([spec.scale * s for s in spec.std])
    model = steps.build()
    if config.output != "logits":
        _answer(model, config.output)
    model.inputs[0].get_tensor().set_names(inputs)
    model.outputs[0].get_tensor().set_names({OUTPUTS[config.output]})
    metadata.set_openvino(model, _about(config, raw))
    # Weights stay in the type that they have.
    return save(model, path)


_OPENVINO = {"uint8": "u8", "float32": "f32"}


def _about(config: Export, raw: InputType) -> dict[str, str]:
    eaten = "token ids, int64" if raw == "int64" else "normalised float32"
    return {
        "edgekd.device.input": f"raw {raw}" if config.preprocessing == "fold" else eaten,
        "edgekd.device.output": OUTPUTS[config.output],
    }


def _prepend(graph: onnx.GraphProto, spec: InputSpec, raw: InputType) -> None:
    from onnx import TensorProto, helper, numpy_helper

    (value,) = graph.input
    wanted = value.type.tensor_type.elem_type
    shape = (1, -1) + (1,) * (len(value.type.tensor_type.shape.dim) - 2)
    mean, std = np.array(spec.mean), np.array(spec.std)
    constants = {
        "edgekd/gain": (1 / (spec.scale * std)).astype(np.float32).reshape(shape),
        "edgekd/offset": (-mean / std).astype(np.float32).reshape(shape),
    }
    graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in constants.items())
    _rename(graph, value.name, "edgekd/normalised")
    nodes = [
        helper.make_node("Cast", [value.name], ["edgekd/float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["edgekd/float", "edgekd/gain"], ["edgekd/scaled"]),
        helper.make_node("Add", ["edgekd/scaled", "edgekd/offset"], ["edgekd/shifted"]),
        # To what the model takes; nothing for float32.
        helper.make_node("Cast", ["edgekd/shifted"], ["edgekd/normalised"], to=wanted),
    ]
    for node in nodes:
        node.name = node.output[0]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    value.type.tensor_type.elem_type = TensorProto.UINT8 if raw == "uint8" else TensorProto.FLOAT


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let all that reads `old` read `new`, in branches and loops too."""
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node:
                    _rename(inner, old, new)


def _append(graph: onnx.GraphProto, output: str) -> None:
    from onnx import TensorProto, helper

    (value,) = graph.output
    last, name = value.name, OUTPUTS[output]
    if output == "softmax":
        graph.node.append(
            helper.make_node("Softmax", [last], [name], name=f"edgekd/{name}", axis=-1)
        )
    else:
        node = helper.make_node(
            "ArgMax", [last], [name], name=f"edgekd/{name}", axis=-1, keepdims=0
        )
        graph.node.append(node)
        value.type.tensor_type.elem_type = TensorProto.INT64
        del value.type.tensor_type.shape.dim[1:]
    value.name = name


def _answer(model: Any, output: str) -> None:
    """Put softmax or argmax before the only result."""
    from openvino import opset13

    (old,) = model.get_results()
    logits = old.input_value(0)
    if output == "softmax":
        answer = opset13.softmax(logits, 1)
    else:
        best = opset13.topk(logits, np.int64(1), 1, "max", "none", index_element_type="i64")
        answer = opset13.squeeze(best.output(1), np.array([1], np.int64))
    answer.friendly_name = f"edgekd/{OUTPUTS[output]}"
    model.add_results([opset13.result(answer)])
    model.remove_result(old)
