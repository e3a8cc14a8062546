"""The operators' profile as the runtimes give it, and its way back to the file and to PyTorch."""

import json
import os
import stat

import numpy as np
import onnx
import pytest

from edgekd.profile.costs import read_graph
from edgekd.profile.device import limits, measure, roofline
from edgekd.profile.device.operators import midmean, onnx_nodes
from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.device.runtimes.onnxruntime import _PRODUCTS
from edgekd.profile.operators import Executed, attribute, operators_report
from tests.profile.zoo_models import SHAPE

FILES = {"onnxruntime": "onnx", "openvino": "openvino"}


def profiled(model, runtime, seconds=0.1):
    """Operators of a zoo model with its graph, and what the device said."""
    x = np.random.default_rng(0).standard_normal((1, *SHAPE), np.float32)
    path = str(getattr(model, FILES[runtime]))
    said = RUNTIMES[runtime].session.operators(path, 1, "f32", x, seconds)
    said = json.loads(json.dumps(said))
    graph = read_graph(model.onnx)
    return attribute(tuple(map(Executed.model_validate, said["operators"])), graph), graph, said


@pytest.mark.parametrize("runtime", FILES)
@pytest.mark.parametrize("name", ["vit", *(pytest.param(name, marks=pytest.mark.slow)
                                  for name in ("mobilenetv2", "resnet20", "shufflenetv2"))])  # fmt: skip
def test_nearly_all_time_and_work_of_real_networks_is_mapped(zoo, name, runtime):
    model = zoo(name)
    operators, graph, said = profiled(model, runtime)
    total = sum(o.seconds for o in operators)
    assert total > 0
    assert said["runs"] >= 4
    assert sum(o.seconds for o in operators if o.module is not None) > 0.9 * total
    modules = dict(model.module.named_modules())
    assert {o.module for o in operators} - {None} <= set(modules)
    # Every operator of the file is done at most once, and together nearly all of the work.
    done = [node for o in operators for node in o.nodes]
    assert len(done) == len(set(done))
    work = sum(node.flops for node in graph.nodes)
    assert 0.97 * work < sum(o.flops or 0 for o in operators) <= work


@pytest.mark.parametrize("runtime", FILES)
def test_products_belong_to_the_layer_that_has_their_weights(zoo, runtime):
    import torch

    model = zoo("mobilenetv2")
    operators, _, _ = profiled(model, runtime)
    layers = {
        n for n, m in model.module.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    }  # fmt: skip
    products = [o for o in operators if o.type in ("Conv", "Gemm", "Convolution", "FullyConnected")]
    assert {o.module for o in products} == layers
    assert len(products) == len(layers)


@pytest.mark.parametrize("runtime", FILES)
def test_int8_files_are_mapped_too(zoo, runtime, tmp_path):
    pytest.importorskip("nncf")
    from edgekd.quantize.backend import quantize
    from edgekd.quantize.recipes import RECIPES

    model = zoo("vit")
    recipe = RECIPES.find("default", tmp_path)
    samples = list(np.random.default_rng(0).standard_normal((8, 1, *SHAPE), np.float32))
    source = getattr(model, FILES[runtime])
    path, *_ = quantize(FILES[runtime], source, tmp_path / source.name, recipe, samples)
    said = RUNTIMES[runtime].session.operators(str(path), 1, "f32", samples[0], 0.1)
    graph = read_graph(path if runtime == "onnxruntime" else model.onnx)
    operators = attribute(tuple(map(Executed.model_validate, said["operators"])), graph)
    total = sum(o.seconds for o in operators)
    assert sum(o.seconds for o in operators if o.module is not None) > 0.9 * total
    assert sum(o.flops or 0 for o in operators) > 0.95 * sum(n.flops for n in graph.nodes)


def test_without_a_graph_the_operators_are_there_without_modules():
    entry = Executed(name="a", type="Conv", seconds=1e-3)
    fused = Executed(name="b", type="Relu")
    (operator,) = attribute((entry, fused), None)
    assert (operator.name, operator.module, operator.flops) == ("a", None, None)


def test_a_run_without_onnx_files_says_what_is_missing(exported):
    files = [file for file in exported.files if file.format == "openvino"]
    said = [("here", [(file, "openvino") for file in files], {}, "measured")]
    found = operators_report(files, said, exported.root, 1)
    assert found.costs == ()
    assert any("no ONNX file" in note for note in found.notes)


def test_nodes_read_without_the_onnx_package_are_those_that_it_reads(zoo):
    path = zoo("vit").onnx
    expected = [
        {"name": n.name, "type": n.op_type, "inputs": list(n.input), "outputs": list(n.output)}
        for n in onnx.load(path).graph.node
    ]
    assert onnx_nodes(path) == expected


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\xff\xff", b"\x0b", b"\xff" * 40])
def test_a_broken_file_is_a_value_error(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a protobuf message"):
        onnx_nodes(path)


def test_midmean_ignores_what_is_far_off_and_keeps_what_lies_between():
    assert midmean(np.array([0.0, 1, 1, 0, 1, 0, 1000, 0])) == 0.5
    assert midmean(np.array([3.0])) == 3


def plan(exported, tmp_path, **changes):
    np.save(tmp_path / "inputs.npy", exported.inputs)
    models = [
        {
            "id": f"here/{runtime}/{role}", "runtime": runtime, "threads": 1, "precision": "f32",
            "path": str(exported.folder / f"{role}.{suffix}"),
        }
        | changes.get(f"{runtime}/{role}", {})
        for runtime, suffix in (("onnxruntime", "onnx"), ("openvino", "xml"))
        for role in ("teacher", "student")
    ]  # fmt: skip
    return {
        "models": models, "inputs": str(tmp_path / "inputs.npy"), "batch_size": 1,
        "throughput_batch_size": 8, "interval": 0.5, "min_seconds": 0.05, "max_seconds": 0.1,
        "operators": True,
        "phases": ["latency"],
    }  # fmt: skip


def report(exported, result):
    entries = [
        (file, runtime)
        for runtime, format in FILES.items()
        for file in exported.files
        if file.format == format
    ]
    return operators_report(
        exported.files, [("here", entries, result, "measured")], exported.root, 1
    )


def test_from_the_device_to_the_report(exported, tmp_path):
    measure.measure(plan(exported, tmp_path), tmp_path, lambda event: None)
    found = report(exported, json.loads((tmp_path / "result.json").read_text()))
    assert found.notes == ()
    assert {(p.role, p.runtime) for p in found.profiles} == {
        (role, runtime) for role in ("teacher", "student") for runtime in FILES
    }
    for p in found.profiles:
        assert p.operators
        assert p.wall > 0
        # OpenVINO counts whole microseconds, and the student takes one at the most.
        if sum(o.seconds for o in p.operators):
            assert p.mapped > 0.9
        assert any(o.module is not None for o in p.operators)
    assert [(c.role, c.flops > 0, c.guessed) for c in found.costs] == [
        ("teacher", True, ()), ("student", True, ()),
    ]  # fmt: skip
    assert {r.runtime for r in found.rooflines} == set(FILES)
    for roof in found.rooflines:
        assert roof.flops["f32"] > 1e8
        assert roof.provenance == "measured"


def test_what_cannot_be_profiled_is_a_note_and_the_rest_stands(exported, tmp_path):
    broken = {"openvino/student": {"path": "/nowhere/student.xml"}}
    here = plan(exported, tmp_path, **broken)
    models = [model for model in here["models"] if "student" in model["id"]]
    events = []
    with limits.confines(None) as confined:
        result = measure._anatomy(models, here, confined, events.append)
    assert [event["models"] for event in events] == [[model["id"]] for model in models]
    found = report(exported, result)
    (note,) = [note for note in found.notes if "student" in note]
    assert "operators of the student (f32) in openvino are not available" in note
    assert "RuntimeError" in note
    assert sum("the device says nothing of it" in note for note in found.notes) == 2
    assert {(p.role, p.runtime): bool(p.operators) for p in found.profiles} == {
        ("teacher", "onnxruntime"): False, ("student", "onnxruntime"): True,
        ("teacher", "openvino"): False, ("student", "openvino"): False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "operators",
    [
        None,
        "all of them",
        {"here/onnxruntime/student": {"runs": 3, "wall": 1e-3, "operators": [{"name": "a"}]}},
        {"here/onnxruntime/student": {"runs": 3, "wall": float("nan"), "operators": []}},
        {"here/onnxruntime/student": {"runs": 3, "wall": 1e-3, "operators": [{}] * 20_001}},
        {"here/onnxruntime/student": {
            "runs": 3, "wall": 1e-3, "operators": [{"name": "a", "type": "Conv", "seconds": -1}]}},
        {"here/onnxruntime/student": {
            "runs": 3, "wall": 1e-3, "operators": [{"name": "a" * 5000, "type": "Conv"}]}},
    ],
)  # fmt: skip
def test_results_that_no_device_writes_are_refused_with_a_note(exported, operators):
    roofs = {"onnxruntime/1": {"flops": {"f32": "many"}}, "x": {"error": "no numpy"}, "y": 3}
    crowd = {str(i): {"error": "one of many"} for i in range(1000)}
    found = report(exported, {"operators": operators, "rooflines": {**roofs, **crowd}})
    assert all(p.error and not p.operators for p in found.profiles)
    assert 3 < sum("no roofline" in note for note in found.notes) < 50
    assert found.rooflines == ()


class TestRoofline:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        self.store = tmp_path / "edgekd" / "rooflines.json"
        # As on a device with little memory: the arrays of a large one take seconds to fill.
        monkeypatch.setattr(roofline, "_large", lambda machine: 1 << 22)

    def find(self, **changes):
        calls = []

        def multiply(n, threads, precision):
            calls.append(precision)
            if precision == "bf16":
                raise ValueError("not here")
            return lambda: np.zeros((n, n)) @ np.zeros((n, n))

        settings = {"runtime": "numpy", "version": "2", "threads": 1, "precisions": ["bf16", "f32"]}
        return roofline.measure_roofline(multiply, **{**settings, **changes}), calls

    def test_it_is_measured_once_per_runtime_version_and_threads(self):
        first, calls = self.find()
        assert calls
        assert set(first["flops"]) == {"f32"}
        again, calls = self.find()
        assert calls == []
        assert again == {**first, "cached": True}
        for change in ({"version": "3"}, {"threads": 2}, {"runtime": "other"}):
            assert self.find(**change)[0]["cached"] is False

    def test_copies_that_fit_the_caches_are_not_slower_than_possible(self):
        found, _ = self.find()
        assert 1e7 < found["bandwidth"] < 1e13
        assert 1e7 < found["cache_bandwidth"] < 1e13

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"a": '])
    def test_a_broken_cache_is_replaced(self, content):
        self.store.parent.mkdir()
        self.store.write_text(content)
        assert self.find()[0]["cached"] is False
        assert self.find()[0]["cached"] is True

    def test_without_a_place_to_keep_it_it_is_measured_all_the_same(self, tmp_path):
        (tmp_path / "edgekd").write_text("a file where the folder should be")
        assert self.find()[0]["flops"]["f32"] > 0

    def test_the_kept_file_is_plain_and_private_to_no_one_else(self):
        self.find()
        assert json.loads(self.store.read_text())
        assert stat.S_ISREG(os.stat(self.store).st_mode)

    @pytest.mark.parametrize("runtime", FILES)
    def test_the_runtimes_multiply_matrices(self, runtime):
        for precision in ("f32", "int8"):
            RUNTIMES[runtime].session.multiply(16, 1, precision)()

    def test_onnxruntime_computes_in_the_types_of_the_file_only(self):
        with pytest.raises(ValueError, match="not in bf16"):
            RUNTIMES["onnxruntime"].session.multiply(16, 1, "bf16")

    def test_the_embedded_models_are_single_products_of_their_two_inputs(self):
        for precision, type in (("f32", "MatMul"), ("int8", "MatMulInteger")):
            model = onnx.load_model_from_string(_PRODUCTS[precision][0])
            onnx.checker.check_model(model)
            assert [(n.op_type, list(n.input)) for n in model.graph.node] == [(type, ["x", "w"])]
