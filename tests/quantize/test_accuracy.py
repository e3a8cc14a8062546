"""Layers go back to float32, the most sensitive first, until accuracy holds; in few evaluations."""

import itertools
import math
import re

import numpy as np
import pytest

from edgekd.errors import StageError
from edgekd.progress import Silent
from edgekd.quantize.accuracy import TradeOffs, fewest_reverted
from edgekd.quantize.arithmetic import arithmetic
from edgekd.quantize.backend import Source, prepare, quantize
from edgekd.quantize.recipes import Recipe
from edgekd.quantize.sensitivity import SUFFIX, logits, sensitivities

pytest.importorskip("nncf")

FORMATS = ("onnx", "openvino")
BACKENDS = ("nncf", "onnxruntime")


def top1(labels):
    """The score of outputs: of so many samples the class is right."""
    return lambda found: float((found.argmax(1) == labels).mean())


@pytest.fixture
def task():
    with Silent().task("test") as task:
        yield task


def prepared(exported, format, by, samples):
    path = exported.folder / f"teacher{SUFFIX[format]}"
    recipe = Recipe(name="r", backend=by)
    source = Source(format, path, exported.folder / "teacher.onnx")
    return path, prepare(source, recipe, list(samples[:, None]), arithmetic(recipe))


@pytest.mark.parametrize("by", BACKENDS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_fewest_layers_that_brute_force_finds_are_reverted(
    exported, tmp_path, task, format, by
):
    # Calibrated with inputs half as large, what is larger is cut off in every layer.
    path, made = prepared(exported, format, by, exported.inputs / 2)
    reference = logits(format, path, exported.inputs)
    labels, least = reference.argmax(1), {"nncf": 0.95, "onnxruntime": 0.8}[by]

    def accuracy(float32):
        file = made.write(tmp_path / f"b{SUFFIX[format]}", float32)[0]
        return (logits(format, file, exported.inputs).argmax(1) == labels).mean()

    assert accuracy(()) < least
    fewest = next(
        count
        for count in range(len(made.layers) + 1)
        if any(accuracy(c) >= least for c in itertools.combinations(made.layers, count))
    )
    offs = TradeOffs(format, made, exported.inputs, top1(labels), task)
    assert offs.accuracy(path) == 1
    reverted, ranked = fewest_reverted(
        offs,
        least,
        12,
        lambda: sensitivities(format, made, exported.inputs, reference, reference, task),
        where=path,
    )
    assert reverted == fewest
    assert offs.known[reverted].accuracy == accuracy(offs.order[:reverted]) >= least
    assert [s.layer for s in ranked] == list(offs.order)
    assert len(offs.known) <= 2 + math.log2(len(made.layers))
    sizes = [offs.known[count].size for count in sorted(offs.known)]
    assert sizes == sorted(sizes)


def test_sensitivities_are_those_of_a_file_with_only_that_layer_quantized(exported, tmp_path, task):
    """Against NNCF told to leave the other layers alone from the start."""
    path, made = prepared(exported, "onnx", "nncf", exported.inputs)
    reference = logits("onnx", path, exported.inputs)
    teacher = np.random.default_rng(0).standard_normal(reference.shape)
    found = sensitivities("onnx", made, exported.inputs, reference, teacher, task)
    assert [s.divergence for s in found] == sorted((s.divergence for s in found), reverse=True)

    def softmax(values):
        powers = np.exp(values)
        return powers / powers.sum(1, keepdims=True)

    def kl(p, q):
        return np.sum(p * np.log(p / q)) / len(p)

    p_t, p_s = softmax(teacher), softmax(reference)
    for sensitivity in found:
        others = [re.escape(name) for name in made.layers if name != sensitivity.layer]
        alone = quantize(
            "onnx", path, tmp_path / "a.onnx", Recipe(name="r", exclude=others),
            list(exported.inputs[:, None]),
        )[0]  # fmt: skip
        answer = logits("onnx", alone, exported.inputs)
        snr = 10 * np.log10((reference**2).sum() / ((answer - reference) ** 2).sum())
        assert sensitivity.snr == pytest.approx(snr, abs=1)
        divergence = (kl(p_t, softmax(answer)) + kl(p_s, softmax(answer)) - kl(p_t, p_s)) / 2
        assert sensitivity.divergence == pytest.approx(divergence, rel=0.5, abs=1e-5)


def test_nothing_is_ranked_where_every_layer_can_be_quantized(exported, task):
    path, made = prepared(exported, "onnx", "onnxruntime", exported.inputs)
    labels = logits("onnx", path, exported.inputs).argmax(1)
    offs = TradeOffs("onnx", made, exported.inputs, top1(labels), task)
    assert fewest_reverted(offs, 0.5, 12, lambda: pytest.fail("ranked"), where=path) == (0, ())
    assert list(offs.known) == [0]


@pytest.mark.parametrize(("most", "words"), [(12, "even with a single layer"), (2, "after 2 eval")])
def test_a_drop_that_no_choice_of_layers_holds_is_one_clear_error(exported, task, most, words):
    path, made = prepared(exported, "onnx", "onnxruntime", exported.inputs / 1000)
    reference = logits("onnx", path, exported.inputs)
    offs = TradeOffs("onnx", made, exported.inputs, top1(reference.argmax(1)), task)

    def rank():
        return sensitivities("onnx", made, exported.inputs, reference, reference, task)

    with pytest.raises(StageError, match=words) as raised:
        fewest_reverted(offs, 1.0, most, rank, where=path)
    assert len(offs.known) <= most
    assert "max_drop" in raised.value.fix
