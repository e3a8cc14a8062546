"""What a model costs on paper: floating-point operations, bytes and memory, from its ONNX graph.

A multiplication with an addition is 2 FLOPs. Biases of convolutions and matrix products are not
counted, as usual; an exponential or a square root is one operation. Sizes are in the file's types.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import StageError
from edgekd.results import Costs

if TYPE_CHECKING:
    import numpy as np
    import onnx

Shape = tuple[int, ...]

# Operators that only move or rename: no arithmetic. The first ones do not even move.
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "DequantizeLinear"}
_MOVES = _VIEWS | {
    "Cast", "CastLike", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand",
    "Gather", "GatherElements", "GatherND", "Pad", "Range", "Scatter", "ScatterElements", "ScatterND",
    "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose", "Where",
}  # fmt: skip
# Operations per element of the output.
_PER_OUTPUT = {
    **dict.fromkeys(
        (
            "Abs", "Add", "And", "Ceil", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Greater",
            "GreaterOrEqual", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not",
            "Or", "Pow", "Reciprocal", "Relu", "Round", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tanh",
            "Xor", "ThresholdedRelu", "IsNaN",
        ),
        1,
    ),
    "BatchNormalization": 2, "Clip": 2, "LeakyRelu": 2, "PRelu": 2, "QuantizeLinear": 2, "Softsign": 3,
    "Celu": 3, "Elu": 3, "Selu": 3, "Softplus": 3, "HardSigmoid": 4, "Sigmoid": 4, "HardSwish": 5,
    "Gelu": 5, "LogSoftmax": 5, "Softmax": 5, "Swish": 5, "Mish": 5,
    # Mean, difference, square, variance, product with 1/σ, scale, shift.
    "GroupNormalization": 7, "InstanceNormalization": 7, "LayerNormalization": 7,
    "RMSNormalization": 4, "LpNormalization": 3,
}  # fmt: skip
# Operations per element of the input.
_PER_INPUT = {
    **dict.fromkeys(
        ("ArgMax", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean",
         "ReduceMin", "ReduceProd", "ReduceSum"),
        1,
    ),
    "ReduceL1": 2, "ReduceL2": 2, "ReduceSumSquare": 2, "ReduceLogSumExp": 2,
}  # fmt: skip
# Elementwise: the output can take the place of an input that nothing else reads.
_IN_PLACE = set(_PER_OUTPUT)
# What the exporter calls the place of what it adds for its own sake.
_NO_MODULE = "_empty_nn_module_stack"
_SCALES = ("scale_", "zero_point_")
_MOST_NODES = 100_000


@dataclass(frozen=True)
class Node:
    """One operator; `module` is the path in the PyTorch model ("" the model itself), if known."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str | None
    flops: float


@dataclass(frozen=True)
class Graph:
    """The operators that run, in order, and the bytes of every tensor.

    What follows from weights alone (such as the dequantization of INT8 weights) does not run: its
    result counts as weights of the size that is stored. `guessed` are the types without a formula,
    counted as one operation per element.
    """

    nodes: tuple[Node, ...]
    bytes: dict[str, int]
    weights: frozenset[str]
    weight_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    guessed: tuple[str, ...]


def read_graph(path: Path, batch_size: int = 1, sample: Sequence[int] = ()) -> Graph:
    """The graph of an ONNX file for inputs of this batch size, and of the shape `sample` where that is free.

    Raises StageError.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        if not 0 < len(model.graph.node) <= _MOST_NODES:
            raise ValueError(f"it has {len(model.graph.node)} operators")
        shapes, widths = _shapes(model, (batch_size, *sample))
        return _graph(model.graph, shapes, widths)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise StageError(
            f"its operators cannot be counted: {type(error).__name__}: {reason}", where=str(path)
        ) from None


def costs(graph: Graph, *, role: Any, variant: Any, path: str, batch_size: int) -> Costs:
    """The totals of a graph; `moved_bytes` is what its operators read and write one by one."""
    return Costs(
        role=role,
        variant=variant,
        path=path,
        batch_size=batch_size,
        flops=sum(node.flops for node in graph.nodes),
        weight_bytes=graph.weight_bytes,
        moved_bytes=sum(traffic(graph, [node]) for node in graph.nodes),
        peak_activation_bytes=peak_activations(graph),
        guessed=graph.guessed,
    )


def traffic(graph: Graph, nodes: Iterable[Node], needed: frozenset[str] | None = None) -> int:
    """Bytes that `nodes`, run as one, read and write; what only they use stays inside.

    `needed` are the tensors that others read (None: all that are written).
    """
    nodes = [node for node in nodes if node.type not in _VIEWS]
    written = {name for node in nodes for name in node.outputs}
    read = {name for node in nodes for name in node.inputs} - written
    kept = written if needed is None else written & needed
    return sum(graph.bytes.get(name, 0) for name in read | kept)


def peak_activations(graph: Graph) -> int:
    """The most bytes of activations that live at once, in the file's order, weights not counted.

    A view shares the memory of its input, and an elementwise operator writes over an input that
    nothing reads later. No planner that keeps the order needs less, except by fusing operators.
    """
    end = len(graph.nodes)
    last = dict.fromkeys(graph.outputs, end)
    for position, node in reversed(list(enumerate(graph.nodes))):
        for name in node.inputs:
            last.setdefault(name, position)
    # The memory of a tensor is that of the first one that had its place.
    place: dict[str, str] = {}
    born: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    dies: dict[str, int] = {name: last.get(name, 0) for name in graph.inputs}
    size: dict[str, int] = {name: graph.bytes.get(name, 0) for name in graph.inputs}
    for position, node in enumerate(graph.nodes):
        for output in node.outputs:
            inherited = _inherited(graph, node, output, position, place, dies, size)
            home = place[output] = inherited or output
            born.setdefault(home, position)
            dies[home] = max(dies.get(home, position), last.get(output, position))
            size[home] = max(size.get(home, 0), graph.bytes.get(output, 0))
    change = [0] * (end + 2)
    for home, start in born.items():
        change[start] += size[home]
        change[dies[home] + 1] -= size[home]
    live = most = 0
    for step in change:
        live += step
        most = max(most, live)
    return most


def _inherited(
    graph: Graph,
    node: Node,
    output: str,
    position: int,
    place: dict[str, str],
    dies: dict[str, int],
    size: dict[str, int],
) -> str | None:
    """Whose memory an output takes over."""
    activations = [name for name in node.inputs if name and name not in graph.weights]
    if node.type in _VIEWS and activations:
        home = place.get(activations[0], activations[0])
        if graph.bytes.get(output, 0) <= size.get(home, 0):
            return home
    if node.type not in _IN_PLACE:
        return None
    for name in activations:
        home = place.get(name, name)
        # The caller's own inputs are not written over.
        if (
            home not in graph.inputs
            and dies.get(home) == position
            and size.get(home) == graph.bytes.get(output)
        ):
            return home
    return None


def _shapes(
    model: onnx.ModelProto, given: Sequence[int]
) -> tuple[dict[str, Shape], dict[str, float]]:
    """Shape and bytes per element of every tensor that shape inference finds."""
    import onnx

    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    del graph.value_info[:]
    for entry in graph.input:
        if entry.name in weights:
            continue
        dims = entry.type.tensor_type.shape.dim
        for position, dim in enumerate(dims):
            if not dim.HasField("dim_value"):
                if position >= len(given):
                    raise ValueError(f"axis {position} of the input {entry.name!r} has no size")
                dim.dim_value = given[position]
    for entry in graph.output:
        entry.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape] = {}
    widths: dict[str, float] = {}
    for entry in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = entry.type.tensor_type
        widths[entry.name] = _width(tensor.elem_type)
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[entry.name] = tuple(d.dim_value for d in tensor.shape.dim)
    for weight in graph.initializer:
        shapes[weight.name] = tuple(weight.dims)
        widths[weight.name] = _width(weight.data_type)
    missing = [n for node in graph.node for n in node.output if n and n not in shapes]
    if missing and not any(w.external_data for w in graph.initializer):
        for name, array in zip(missing, _run(model, missing), strict=True):
            shapes[name], widths[name] = array.shape, array.dtype.itemsize
    return shapes, widths


def _run(model: onnx.ModelProto, names: list[str]) -> list[np.ndarray]:
    """The values of tensors for an input of zeros: some shapes are only known by running."""
    import numpy as np
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {entry.name for entry in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    weights = {weight.name for weight in model.graph.initializer}
    feed = {
        entry.name: np.zeros(
            [dim.dim_value for dim in entry.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type),
        )
        for entry in model.graph.input
        if entry.name not in weights
    }
    values: list[np.ndarray] = session.run(names, feed)
    return values


def _width(type: int) -> float:
    """Bytes per element; half a byte for 4-bit integers."""
    import onnx

    name = onnx.TensorProto.DataType.Name(type)
    if name.endswith(("INT4", "E2M1")):
        return 0.5
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(type).itemsize
    except KeyError:
        return 0


def _graph(graph: onnx.GraphProto, shapes: dict[str, Shape], widths: dict[str, float]) -> Graph:
    sizes = {
        name: math.ceil(math.prod(shape) * widths.get(name, 0)) for name, shape in shapes.items()
    }
    stored = {weight.name: sizes[weight.name] for weight in graph.initializer}
    # What follows from weights alone, and the stored weights that it comes from.
    roots: dict[str, frozenset[str]] = {name: frozenset([name]) for name in stored}
    nodes: list[Node] = []
    guessed: dict[str, None] = {}
    for entry in graph.node:
        read = [name for name in entry.input if name]
        if all(name in roots for name in read):
            origin = frozenset(root for name in read for root in roots[name])
            for name in entry.output:
                roots[name] = origin
                sizes[name] = sum(stored[root] for root in origin)
            continue
        flops = _flops(entry, shapes)
        if flops is None:
            flops = sum(math.prod(shapes.get(name, (0,))) for name in entry.output)
            guessed[entry.op_type] = None
        nodes.append(
            Node(
                entry.name, entry.op_type, tuple(entry.input), tuple(filter(None, entry.output)),
                _module(entry, roots), float(flops),
            )
        )  # fmt: skip
    outputs = tuple(entry.name for entry in graph.output)
    inputs = tuple(entry.name for entry in graph.input if entry.name not in stored)
    _narrow(nodes, sizes, {*inputs, *outputs})
    used = {root for node in nodes for name in node.inputs for root in roots.get(name, ())}
    return Graph(
        tuple(nodes),
        sizes,
        frozenset(roots),
        sum(stored[name] for name in used),
        inputs,
        outputs,
        tuple(guessed),
    )


def _narrow(nodes: list[Node], sizes: dict[str, int], callers: set[str]) -> None:
    """What is only quantized next is never stored wider: every runtime fuses that.

    The model's own inputs and outputs, `callers`, stay what they are.
    """
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    for node in reversed(nodes):
        if node.type in ("DequantizeLinear", "QuantizeLinear", "Relu", "Clip"):
            source, result = node.inputs[0], node.outputs[0]
            if node.type == "DequantizeLinear":
                if result not in callers:
                    sizes[result] = min(sizes.get(result, 0), sizes.get(source, 0))
            elif readers[source] == 1 and source not in callers:
                sizes[source] = min(sizes.get(source, 0), sizes.get(result, 0))


def _module(node: onnx.NodeProto, roots: dict[str, frozenset[str]]) -> str | None:
    """The innermost module, as PyTorch's exporter wrote it down.

    A convolution with a folded batch normalization bears the latter's name; its weight still has
    the name of the convolution.
    """
    written = {entry.key: entry.value for entry in node.metadata_props}
    try:
        scopes = ast.literal_eval(written["pkg.torch.onnx.name_scopes"])
        module = "" if scopes[-2].startswith(_NO_MODULE) else str(scopes[-2])
    except (KeyError, ValueError, SyntaxError, IndexError, TypeError, AttributeError):
        return None
    parent = module.rpartition(".")[0]
    for name in node.input:
        for root in roots.get(name, ()):
            # NNCF puts "q_output_" before a quantized weight, and other prefixes before its scale.
            owner, _, parameter = root.removeprefix("q_output_").rpartition(".")
            related = owner.rpartition(".")[0] == parent and not owner.startswith(_SCALES)
            if owner and related and parameter.startswith("weight"):
                return owner
    return module


def _flops(node: onnx.NodeProto, shapes: dict[str, Shape]) -> float | None:
    """Operations of one node; None without a formula or without the shapes that it needs."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _MOVES:
        return 0
    try:
        if node.op_type in _PRODUCTS:
            return 2 * _PRODUCTS[node.op_type](node, shapes)
        if node.op_type in _PER_OUTPUT:
            return _PER_OUTPUT[node.op_type] * math.prod(shapes[node.output[0]])
        if node.op_type in _PER_INPUT:
            return _PER_INPUT[node.op_type] * math.prod(shapes[node.input[0]])
        if node.op_type in ("AveragePool", "MaxPool", "LpPool"):
            window: list[int] = _attribute(node, "kernel_shape")
            return math.prod(window) * math.prod(shapes[node.output[0]])
    except (KeyError, IndexError):
        pass
    return None


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    if default is None:
        raise KeyError(name)
    return default


def _convolution(weight: int) -> Callable[[onnx.NodeProto, dict[str, Shape]], int]:
    """Every output is a sum over a group's input channels and the kernel: (c_out, c_in/g, k…)."""
    return lambda node, shapes: (
        math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weight]][1:])
    )


def _transposed(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Every input goes to a group's output channels and the kernel: (c_in, c_out/g, k…)."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    inner = shapes[node.input[0]][0 if _attribute(node, "transA", 0) else 1]
    return math.prod(shapes[node.output[0]]) * inner


def _matmul(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _einsum(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """The product over all letters of the equation."""
    terms = _attribute(node, "equation").decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=False):
        if "." in term:
            raise KeyError("…")
        sizes |= zip(term, shapes[name], strict=False)
    return math.prod(sizes.values())


def _attention(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Each query's elements meet every key, and each output's elements every value."""
    keys = shapes[node.input[1]][-2]
    return keys * (math.prod(shapes[node.input[0]]) + math.prod(shapes[node.output[0]]))


def _recurrent(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """All gates of every step: W (directions, gates·hidden, in), R (directions, gates·hidden, hidden)."""
    steps, batch = shapes[node.input[0]][:2]
    return steps * batch * sum(math.prod(shapes[node.input[i]]) for i in (1, 2))


# Multiplications with additions.
_PRODUCTS: dict[str, Callable[[Any, dict[str, Shape]], int]] = {
    "Conv": _convolution(1), "ConvInteger": _convolution(1), "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed, "Gemm": _gemm, "MatMul": _matmul, "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul, "Einsum": _einsum, "Attention": _attention,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip
