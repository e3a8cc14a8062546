"""Costs on paper against PyTorch's own counter, sums by hand, and brute force."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgekd.errors import StageError
from edgekd.profile.costs import costs, peak_activations, read_graph, traffic
from tests.profile.zoo_models import SHAPE

PRODUCTS = {"Conv", "Gemm", "MatMul"}


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "mobilenetv2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet20", "shufflenetv2", "wrn16-2")),
    ],
)
def test_products_are_those_that_pytorch_counts(zoo, name):
    model = zoo(name)
    # Attention as matrix products: PyTorch does not count its fused form on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.module(torch.randn(1, *SHAPE))
    graph = read_graph(model.onnx)
    assert graph.guessed == ()
    counted = sum(node.flops for node in graph.nodes if node.type in PRODUCTS)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
    rest = sum(node.flops for node in graph.nodes) - counted
    assert 0 < rest < 0.2 * counted


def test_weights_are_the_models_parameters_and_everything_grows_with_the_batch(zoo):
    model = zoo("mobilenetv2")
    one, eight = (
        costs(read_graph(model.onnx, n), role="student", variant="f32", path="", batch_size=n)
        for n in (1, 8)
    )
    # The exporter folds batch normalizations, of which nothing but zero biases would be left.
    layers = (torch.nn.Conv2d, torch.nn.Linear)
    kept = [p for m in model.module.modules() if isinstance(m, layers) for p in m.parameters()]
    assert one.weight_bytes == pytest.approx(4 * sum(p.numel() for p in kept), rel=1e-4)
    assert eight.weight_bytes == one.weight_bytes
    assert eight.flops == pytest.approx(8 * one.flops, rel=1e-3)
    assert eight.peak_activation_bytes == pytest.approx(8 * one.peak_activation_bytes, rel=0.01)
    assert one.moved_bytes < eight.moved_bytes < 8 * one.moved_bytes


def graph_of(tmp_path, nodes, input_shape, weights=(), inputs=("x",), domains=()):
    """A file with input x float32 (batch, …) and output y."""
    graph = helper.make_graph(
        [helper.make_node(*n[:3], name=f"n{i}", **(n[3] if len(n) > 3 else {}))
         for i, n in enumerate(nodes)],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *input_shape]) for n in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "shape", "weights", "flops"),
    [
        # 8 × 6×6 outputs, each of 2 input channels (4 in 2 groups) × 3×3.
        (("Conv", ["x", "w"], ["y"], {"group": 2}), (4, 8, 8), {"w": zeros(8, 2, 3, 3)},
         2 * 8 * 36 * 2 * 9),
        # 4 × 8×8 inputs, each to 5 channels × 2×2.
        (("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]}), (4, 8, 8),
         {"w": zeros(4, 5, 2, 2)}, 2 * 4 * 64 * 5 * 4),
        (("Gemm", ["x", "w", "b"], ["y"], {"transB": 1}), (16,), {"w": zeros(5, 16), "b": zeros(5)},
         2 * 5 * 16),
        (("MatMul", ["x", "w"], ["y"]), (7, 16), {"w": zeros(16, 3)}, 2 * 7 * 16 * 3),
        (("Einsum", ["x", "w"], ["y"], {"equation": "bij,jk->bik"}), (7, 16), {"w": zeros(16, 3)},
         2 * 7 * 16 * 3),
        (("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "strides": [2, 2]}), (4, 8, 8), {},
         4 * 16 * 4),
        (("ReduceMean", ["x"], ["y"]), (4, 8, 8), {}, 256),
        (("Softmax", ["x"], ["y"]), (10,), {}, 50),
        (("Relu", ["x"], ["y"]), (10,), {}, 10),
        (("Transpose", ["x"], ["y"]), (10, 2), {}, 0),
    ],
)  # fmt: skip
def test_a_formula_gives_what_counting_by_hand_gives(tmp_path, node, shape, weights, flops):
    graph = read_graph(graph_of(tmp_path, [node], shape, weights))
    assert [n.flops for n in graph.nodes] == [flops]
    assert graph.guessed == ()


def test_attention_equals_its_two_matrix_products(tmp_path):
    batch, heads, queries, width = 1, 4, 6, 8
    path = graph_of(
        tmp_path, [("Attention", ["x", "x", "x"], ["y"])], (heads, queries, width), domains=()
    )
    model = onnx.load(path)
    model.opset_import[0].version = 23
    onnx.save(model, path)
    (node,) = read_graph(path).nodes
    assert node.flops == 2 * 2 * batch * heads * queries * queries * width


def test_an_operator_without_a_formula_is_counted_and_named_never_left_out(tmp_path):
    nodes = [("Det", ["x"], ["z"]), ("Relu", ["z"], ["y"])]
    graph = read_graph(graph_of(tmp_path, nodes, (5, 3, 3)))
    assert graph.guessed == ("Det",)
    assert [node.flops for node in graph.nodes] == [5, 5]


def test_shapes_that_only_running_tells_are_found(tmp_path):
    weights = {"zero": np.int64(0), "one": np.int64(1), "none": np.array([], np.int64)}
    nodes = [
        ("Shape", ["x"], ["s"], {"start": 1, "end": 2}), ("Squeeze", ["s"], ["n"]),
        ("Range", ["zero", "n", "one"], ["r"]), ("Gather", ["x", "r"], ["g"], {"axis": 1}),
        ("Relu", ["g"], ["y"]),
    ]  # fmt: skip
    graph = read_graph(graph_of(tmp_path, nodes, (12,), weights))
    assert graph.nodes[-1].flops == 12
    assert graph.guessed == ()


def test_int8_weights_count_as_they_are_stored_and_quantized_activations_too(tmp_path):
    scale, zero = {"s": np.float32(0.1)}, {"z": np.int8(0)}
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["xq"]), ("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        ("DequantizeLinear", ["wq", "s", "z"], ["w"]), ("Conv", ["xd", "w"], ["c"]),
        ("Relu", ["c"], ["r"]), ("QuantizeLinear", ["r", "s", "z"], ["rq"]),
        ("DequantizeLinear", ["rq", "s", "z"], ["y"]),
    ]  # fmt: skip
    weights = {"wq": np.zeros((8, 4, 3, 3), np.int8), **scale, **zero}
    graph = read_graph(graph_of(tmp_path, nodes, (4, 8, 8), weights))
    assert graph.weight_bytes == 8 * 4 * 9 + 4 + 1
    conv = next(node for node in graph.nodes if node.type == "Conv")
    scales = 4 + 1
    assert traffic(graph, [conv]) == 4 * 64 + 8 * 36 + 8 * 4 * 9 + scales
    # In between only bytes; at the end the quantized result and the float32 one.
    assert peak_activations(graph) == 288 + 4 * 288


class TestLiveActivations:
    def test_a_shortcut_is_kept_until_it_is_added(self, tmp_path):
        weights = {"w": zeros(4, 4, 1, 1)}
        nodes = [
            ("Conv", ["x", "w"], ["a"]), ("Relu", ["a"], ["b"]), ("Conv", ["b", "w"], ["c"]),
            ("Relu", ["c"], ["d"]), ("Conv", ["d", "w"], ["e"]), ("Add", ["e", "b"], ["y"]),
        ]  # fmt: skip
        graph = read_graph(graph_of(tmp_path, nodes, (4, 8, 8), weights))
        # At the last convolution: the shortcut b, its input d, its output e.
        assert peak_activations(graph) == 3 * 4 * 4 * 64

    def test_a_view_needs_no_memory_of_its_own_but_keeps_that_of_its_source(self, tmp_path):
        weights = {"w": zeros(16, 16), "v": zeros(16, 16)}
        nodes = [
            ("MatMul", ["x", "w"], ["a"]), ("Flatten", ["a"], ["f"]), ("MatMul", ["f", "v"], ["b"]),
            ("MatMul", ["b", "v"], ["c"]), ("Concat", ["c", "f"], ["y"], {"axis": 1}),
        ]  # fmt: skip
        graph = read_graph(graph_of(tmp_path, nodes, (16,), weights))
        # a (seen by f), c and y = (c, f).
        assert peak_activations(graph) == 4 * 16 * 4

    @given(st.data())
    def test_without_views_it_is_what_counting_every_step_gives(self, tmp_path_factory, data):
        """Random graphs of Concat, which can neither share nor overwrite."""
        count = data.draw(st.integers(1, 8))
        names, nodes = ["x"], []
        for i in range(count):
            few = st.lists(st.sampled_from(names), min_size=1, max_size=3)
            name = "y" if i == count - 1 else f"t{i}"
            nodes.append(("Concat", data.draw(few), [name], {"axis": 1}))
            names.append(name)
        graph = read_graph(graph_of(tmp_path_factory.mktemp("live"), nodes, (3,)))
        most = 0
        for step, node in enumerate(graph.nodes):
            needed = {"y"} | {i for later in graph.nodes[step:] for i in later.inputs}
            made = {"x"} | {o for before in graph.nodes[: step + 1] for o in before.outputs}
            live = (needed & made) | set(node.outputs)
            most = max(most, sum(graph.bytes[name] for name in live))
        assert peak_activations(graph) == most


@pytest.mark.parametrize("content", [b"", b"not ONNX at all", b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_model_is_one_clear_error(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(StageError, match="cannot be counted"):
        read_graph(path)


def test_an_input_without_a_size_is_an_error(tmp_path):
    path = graph_of(tmp_path, [("Relu", ["x"], ["y"])], ("width",))
    with pytest.raises(StageError, match="axis 1 of the input 'x' has no size"):
        read_graph(path)
