"""Accuracy-aware quantization: the layers that hurt are found, and no more of them go back than needed."""

import numpy as np
import onnx
import pytest
import torch

from edgekd.config.schema import Export
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.quantize.accuracy import (
    Labelled,
    accuracy,
    kl_divergence,
    revert_until_it_holds,
    run_onnx,
    sensitivities,
)
from edgekd.quantize.backend import Types, quantize
from edgekd.quantize.qdq import layers
from edgekd.quantize.recipes import Recipe
from edgekd.results import InputSpec, ModelCard


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A network with one layer that 8 bits ruin: one of its inputs is a thousand times the others."""
    folder = tmp_path_factory.mktemp("spoiled")
    torch.manual_seed(0)
    linear = [torch.nn.Linear(16, 16) for _ in range(4)]
    with torch.no_grad():
        # The first of the outputs of layer 1 is huge and layer 2 does not look at it.
        linear[1].weight[0] *= 3000
        linear[1].bias[0] = 3000
        linear[2].weight[:, 0] = 0
    module = torch.nn.Sequential(
        linear[0],
        torch.nn.ReLU(),
        linear[1],
        torch.nn.ReLU(),
        linear[2],
        torch.nn.ReLU(),
        linear[3],
    ).eval()
    inputs = torch.randn(400, 16)
    card = ModelCard(
        role="student", model="m", args={}, classes=tuple("0123456789abcdef"), seed=0, parameters=1,
        input=InputSpec(shape=(16,), scale=1, mean=(0,), std=(1,)),
    )  # fmt: skip
    source = Source(module, card, inputs[:2], folder / "student.onnx")
    path = EXPORTERS.get("onnx")(source, folder, Export()).path
    original = onnx.load(path)
    samples = list(inputs[:100, None].numpy())
    quantized = quantize(path, Recipe(name="r"), samples, Types(False, False))
    labels = run_onnx(original, inputs.numpy()).argmax(1)
    return quantized, original, Labelled(inputs.numpy(), labels)


def test_the_layer_that_is_ruined_is_the_most_sensitive(spoiled):
    quantized, original, validation = spoiled
    teacher = run_onnx(original, validation.inputs)
    found = sensitivities(quantized, original, validation.inputs, teacher)
    assert {f.layer for f in found} == set(layers(quantized))
    assert found[0].snr < found[1].snr - 10
    # The teacher is the student itself: any change takes the answers away from it.
    assert found[0].teacher_kl > 0
    assert found[0].teacher_kl == max(f.teacher_kl for f in found)
    third = [n.name for n in original.graph.node if n.op_type == "Gemm"][2]
    assert found[0].layer == third


def test_reverting_it_alone_is_enough_and_is_found(spoiled):
    quantized, original, validation = spoiled
    assert accuracy(quantized, validation) < 0.8
    ranked = [
        f.layer
        for f in sensitivities(
            quantized, original, validation.inputs, run_onnx(original, validation.inputs)
        )
    ]
    keep, curve = revert_until_it_holds(
        quantized, original, ranked, validation, max_drop=0.05, max_evaluations=10
    )
    assert keep == {ranked[0]}
    assert [len(point.layers) for point in curve] == [0, 1]
    assert [point.holds for point in curve] == [False, True]
    assert curve[0].size < curve[1].size


def brute_force(accuracies, max_drop):
    return next(n for n, value in enumerate(accuracies) if 1 - value <= max_drop)


@pytest.mark.parametrize("needed", range(10))
@pytest.mark.parametrize("evaluations", [1, 2, 3, 12])
def test_the_number_of_evaluations_is_bounded_and_what_is_found_holds(
    monkeypatch, needed, evaluations
):
    from edgekd.quantize import accuracy as module

    names, asked = [f"l{n}" for n in range(9)], []

    def fake(model, validation):
        if model == "original":
            return 1.0
        asked.append(len(model))
        return 1.0 if len(model) >= needed else 0.5 + 0.01 * len(model)

    class Kept(frozenset):
        def ByteSize(self):
            return len(self)

    monkeypatch.setattr(module, "accuracy", fake)
    monkeypatch.setattr(module, "reverted", lambda quantized, original, keep: Kept(keep))
    keep, curve = revert_until_it_holds(
        "quantized", "original", names, None, max_drop=0.1, max_evaluations=evaluations
    )
    # One more where nothing was found: everything goes back.
    assert len(asked) == len(set(asked)) == len(curve) <= evaluations + 1
    if needed <= 9:
        assert len(keep) >= needed
        assert any(p.holds and set(p.layers) == keep for p in curve)
    if evaluations == 12 and needed <= 9:
        assert len(keep) == needed
    assert keep == set(names[: len(keep)])


def test_kl_divergence_is_that_of_the_definition():
    teacher, student = np.array([[1.0, 2.0, 0.0]]), np.array([[0.0, 1.0, 3.0]])
    p, q = (np.exp(z) / np.exp(z).sum() for z in (teacher, student))
    assert kl_divergence(teacher, student) == pytest.approx((p * np.log(p / q)).sum())
    assert kl_divergence(teacher, teacher + 7) == pytest.approx(0)
