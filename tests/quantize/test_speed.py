"""Speed-aware: every layer is measured on the target or said to be left out. No test depends on speed."""

import numpy as np
import pytest

from edgekd.errors import StageError
from edgekd.profile.targets import Target, find
from edgekd.progress import Silent
from edgekd.quantize.arithmetic import arithmetic
from edgekd.quantize.backend import Source, prepare
from edgekd.quantize.recipes import Recipe
from edgekd.quantize.speed import in_turns, place, slow_layers

pytest.importorskip("nncf")


@pytest.fixture
def made(exported):
    recipe = Recipe(name="r", backend="onnxruntime")
    path = exported.folder / "teacher.onnx"
    return prepare(
        Source("onnx", path, path), recipe, list(exported.inputs[:, None]), arithmetic(recipe)
    )


@pytest.fixture
def local(tmp_path):
    return place([find("local", tmp_path)], "onnx")


@pytest.mark.slow
def test_layers_are_compared_with_the_whole_file(exported, made, local):
    with Silent().task("test") as task:
        layers, rest = slow_layers("onnx", made, local, exported.inputs, seconds=60, task=task)
    assert [speed.layer for speed in layers] == list(made.layers)
    assert rest == ()
    for speed in layers:
        low, high = speed.interval
        assert 0 < low <= speed.ratio <= high
        assert not speed.kept_float32 or high < 0.98


def test_layers_that_no_time_is_left_for_are_named(exported, made, local):
    with Silent().task("test") as task:
        layers, rest = slow_layers("onnx", made, local, exported.inputs, seconds=0, task=task)
    assert layers == ()
    assert rest == made.layers


def test_a_file_that_the_target_cannot_run_is_one_clear_error(exported, local, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(StageError):
        in_turns({"bad": (bad,)}, local, exported.inputs)


def test_only_targets_that_can_be_measured_now_decide(tmp_path):
    offline = find("offline", tmp_path)
    predicted = Target.model_validate({"name": "p", "class": "edge", "transport": "predicted"})
    local = find("local", tmp_path)
    assert place([offline, predicted], "onnx") is None
    assert place([predicted, local], "openvino").runtime == "openvino"
    only = local.model_copy(update={"runtimes": ["onnxruntime"]})
    assert place([only], "openvino") is None


def test_in_turns_gives_the_same_rounds_to_every_file(exported, local):
    files = {name: (exported.folder / f"{name}.onnx",) for name in ("teacher", "student")}
    samples = in_turns(files, local, exported.inputs, launches=2, seconds=0.1)
    assert set(samples) == set(files)
    rounds = [len(np.unique(found.rounds)) for found in samples.values()]
    assert rounds[0] == rounds[1] > 1
