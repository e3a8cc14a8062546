"""A real teacher of the digits, trained once, as an ONNX file and as answers."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.config.schema import Config
from edgekd.data.resolve import load
from tests.teachers.runs import SMALL, teacher_stage


@pytest.fixture(scope="session")
def digits():
    config = Config()
    return load(config.data, config.data.seed, None)


@pytest.fixture(scope="session")
def taught(tmp_path_factory, digits):
    """`file`: a trained teacher as ONNX. `logits` (1797, 10): its PyTorch answers to every sample."""
    folder = tmp_path_factory.mktemp("taught")
    teacher, run = teacher_stage(SMALL, folder / "run")
    everything = digits.tensor(np.arange(len(digits.labels)))
    logits = teacher.module(everything).detach().numpy()
    return SimpleNamespace(file=_onnx(teacher.module, run, folder / "teacher.onnx"), logits=logits)


def _onnx(module, run, path):
    """zoo:mlp as a graph, written by hand: the exporter takes 20 s to load."""
    first, second = (m for m in module.modules() if type(m).__name__ == "Linear")
    weights = {"a": first.weight, "b": first.bias, "c": second.weight, "d": second.bias}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "a", "b"], ["hidden"], transB=1),
            helper.make_node("Relu", ["hidden"], ["relu"]),
            helper.make_node("Gemm", ["relu", "c", "d"], ["logits"], transB=1),
        ],
        "mlp",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w.detach().numpy(), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    card = run.card("teacher")
    helper.set_model_props(
        model,
        {
            "edgekd.classes": json.dumps(card.classes),
            "edgekd.input": card.input.model_dump_json(),
        },
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
