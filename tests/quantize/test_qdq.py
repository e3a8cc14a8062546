"""Surgery on quantized graphs: layers go back to float32 one by one, weights are the integers they become."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.quantize.accuracy import run_onnx
from edgekd.quantize.backend import Types, quantize
from edgekd.quantize.qdq import layers, reverted, with_integer_weights
from edgekd.quantize.recipes import Recipe


@pytest.fixture(scope="module", params=["nncf", "onnxruntime"])
def pair(request, exported):
    source = exported.folder / "teacher.onnx"
    recipe = Recipe(name="r", backend=request.param)
    samples = list(exported.inputs[:, None])
    return quantize(source, recipe, samples, Types(False, False)), onnx.load(source)


def test_with_every_layer_reverted_it_is_the_original(pair, exported):
    quantized, original = pair
    model = reverted(quantized, original, layers(quantized))
    assert not any("Linear" in node.op_type for node in model.graph.node)
    assert np.array_equal(run_onnx(model, exported.inputs), run_onnx(original, exported.inputs))


def test_without_any_it_is_the_quantized_one(pair, exported):
    quantized, original = pair
    model = reverted(quantized, original, ())
    assert np.array_equal(run_onnx(model, exported.inputs), run_onnx(quantized, exported.inputs))


def test_each_reverted_layer_reads_float32_with_its_own_weights(pair, exported):
    quantized, original = pair
    kinds = {n.name: n.op_type for n in quantized.graph.node}
    gemms = [name for name in layers(quantized) if kinds[name] == "Gemm"]
    assert len(gemms) == 3
    sizes = []
    for count in range(len(gemms) + 1):
        model = reverted(quantized, original, gemms[:count])
        onnx.checker.check_model(model)
        made = {output: n.op_type for n in model.graph.node for output in n.output}
        quantized_still = [
            n.name
            for n in model.graph.node
            if n.op_type == "Gemm" and made.get(n.input[1]) == "DequantizeLinear"
        ]
        assert quantized_still == gemms[count:]
        sizes.append(model.ByteSize())
    assert sizes == sorted(sizes)


def test_integer_weights_are_those_of_onnxs_own_quantizer():
    random = np.random.default_rng(0)
    weight = (10 * random.normal(size=(3, 5))).astype(np.float32)
    # Exactly between two levels, and beyond the last one.
    weight[0, :3], weight[1, 0], weight[1, 1] = (0.5, 1.5, -2.5), 1000, -1000
    scale, zero = np.array([1, 0.5, 2], np.float32), np.array([0, 3, -7], np.int8)
    tensors = {"w": weight, "s": scale, "z": zero}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
            helper.make_node("Add", ["x", "d"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 5))],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    stored = with_integer_weights(model)
    assert [n.op_type for n in stored.graph.node] == ["DequantizeLinear", "Add"]
    assert {t.name for t in stored.graph.initializer} == {"q", "s", "z"}
    feed = {"x": np.zeros((3, 5), np.float32)}
    run = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed)[0]
        for m in (model, stored)
    ]
    assert np.array_equal(*run)
