"""A smaller device, emulated: real affinity and memory limits, a control group where one can be made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper

from edgekd.config.schema import Budget, Gate, Profile
from edgekd.errors import StageError, UsageError
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import measured
from edgekd.gate.outputs import markdown
from edgekd.profile import transport
from edgekd.profile.device import limits, measure
from edgekd.profile.measure import profile
from edgekd.profile.targets import TARGETS, Limits, find
from edgekd.progress import Silent
from edgekd.report.checks import place
from edgekd.results import ExportedFile

ROOT = Path(__file__).parents[2]
QUICK = Profile(launches=2, min_seconds=0.05, max_seconds=1, interval=0.5)


@pytest.fixture(scope="module")
def glutton(tmp_path_factory):
    """A model as .onnx and .xml that needs 1 GiB for one of its inner tensors."""
    folder = tmp_path_factory.mktemp("glutton")
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [256, 1 << 20]),
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sums"], keepdims=0),
        helper.make_node("ReduceMax", ["sums"], ["one"], keepdims=0),
        helper.make_node("Expand", ["one", "shape"], ["many"]),
        helper.make_node("Exp", ["many"], ["powers"]),
        helper.make_node("ReduceMax", ["powers"], ["y"], keepdims=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "glutton", [x], [y], constants)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "big.onnx")
    openvino.save_model(openvino.convert_model(folder / "big.onnx"), folder / "big.xml")
    return folder


def plan(exported, tmp_path, glutton=None, runtime="onnxruntime", **wanted):
    suffix = {"onnxruntime": "onnx", "openvino": "xml"}[runtime]
    paths = {"student": exported.folder / f"student.{suffix}"}
    if glutton is not None:
        paths = {"glutton": glutton / f"big.{suffix}"} | paths
    np.save(tmp_path / "inputs.npy", exported.inputs[:1])
    return {
        "models": [
            {"id": id, "runtime": runtime, "path": str(path), "threads": 1, "precision": "f32"}
            for id, path in paths.items()
        ],
        "inputs": str(tmp_path / "inputs.npy"), "batch_size": 1, "throughput_batch_size": 1,
        "interval": 0.5, "min_seconds": 0.05, "max_seconds": 1, "limits": wanted,
    }  # fmt: skip


def run(plan, folder):
    measure.measure(plan, folder, lambda event: None)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_does_not_fit_says_what_it_needs_and_the_rest_is_measured(
    exported, glutton, tmp_path, runtime
):
    result = run(plan(exported, tmp_path, glutton, runtime, memory=512 << 20), tmp_path)
    assert result["models"]["glutton"] == {"error": "needs more than 512 MiB"}
    assert result["models"]["student"]["latency"]["batch_size"] == 1
    assert "512 MiB of memory" in result["environment"]["emulated"]


def test_a_limit_that_python_itself_does_not_fit_in_is_no_crash(exported, tmp_path):
    result = run(plan(exported, tmp_path, memory=16 << 20), tmp_path)
    assert result["models"]["student"] == {"error": "needs more than 16 MiB"}


def test_without_limits_nothing_is_emulated(exported, tmp_path):
    assert run(plan(exported, tmp_path), tmp_path)["environment"]["emulated"] is None


def test_cores_are_kept_to_and_given_back():
    before = os.sched_getaffinity(0)
    last = max(before)
    for cpus, expected in ((1, {min(before)}), ([last], {last})):
        with limits.confines({"cpus": cpus}) as confined:
            assert os.sched_getaffinity(0) == expected
            assert confined.reasons == (
                f"cores {', '.join(map(str, expected))} of {os.cpu_count()}",
            )
        assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("cpus", [[4095], 4096])
def test_cores_that_are_not_there_are_an_error(exported, tmp_path, cpus):
    with pytest.raises(measure.MeasureError, match=r"limits\.cpus: .*lets us use the cores \["):
        run(plan(exported, tmp_path, cpus=cpus), tmp_path)


def test_big_and_little_need_cores_that_differ(monkeypatch):
    usable = sorted(os.sched_getaffinity(0))
    alike = [{"cpus": usable}]
    monkeypatch.setattr(limits, "clusters", lambda: alike)
    with pytest.raises(limits.LimitError, match="alike"), limits.confines({"cpus": "big"}):
        pass
    alike[:] = [{"cpus": usable[:1]}, {"cpus": usable[1:] or usable}]
    with limits.confines({"cpus": "little"}) as confined:
        assert os.sched_getaffinity(0) == {usable[0]}
        assert confined.reasons[0].startswith("little cores")


SPIN = (
    "import sys, time\n"
    "from edgekd.profile.device import limits\n"
    "limits.enter(sys.argv[1:], None)\n"
    "end = time.monotonic() + 0.6\n"
    "while time.monotonic() < end: pass\n"
    "print(time.process_time())"
)


@pytest.mark.parametrize("quota", [0.25, 0.01])
def test_the_cpu_quota_holds_a_process_back_and_the_group_is_removed(quota):
    try:
        with (
            limits.confines({"cpu_quota": quota}) as confined,
            confined.of_a_model() as confinement,
        ):
            (group,) = confinement.groups
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-c", SPIN, group], check=True, env=environment,
                           capture_output=True)  # fmt: skip
            stat = dict(
                line.split() for line in (Path(group) / "cpu.stat").read_text().splitlines()
            )
    except limits.LimitError as error:
        pytest.skip(str(error))
    assert int(stat["nr_throttled"]) > 0
    assert not Path(group).exists()


def test_told_to_end_it_removes_its_group(exported, tmp_path):
    wanted = plan(exported, tmp_path, cpu_quota=0.5) | {"interval": 0, "max_seconds": 60}
    (tmp_path / "plan.json").write_text(json.dumps(wanted))
    arguments = ["-m", "edgekd.profile.device", "measure", tmp_path / "plan.json", tmp_path]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first = json.loads(process.stdout.readline())
    if "error" in first:
        pytest.skip(first["error"])
    groups = [
        group
        for base in ("cpu", "")
        for group in (limits._ROOT / base).glob(f"edgekd-{process.pid}-*")
    ]
    assert groups
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(group.exists() for group in groups)


def test_a_quota_that_nobody_lets_us_set_is_an_error_that_says_what_helps(monkeypatch):
    monkeypatch.setattr(limits, "_bases", lambda controller: [])
    monkeypatch.setattr(limits, "cgroup_cpus", lambda: None)
    with (
        pytest.raises(limits.LimitError, match=r"run as root, or .*docker run --cpus 0\.5"),
        limits.confines({"cpu_quota": 0.5}),
    ):
        pass
    # A container that has that limit already will do, a wider one will not.
    monkeypatch.setattr(limits, "cgroup_cpus", lambda: 0.5)
    with limits.confines({"cpu_quota": 0.5}) as confined:
        assert "container's own limit" in confined.reasons[0]


def files(exported, runtime_format="onnx"):
    return tuple(file for file in exported.files if file.format == runtime_format)


def small(**wanted):
    local = find("local", ROOT)
    return local.model_copy(
        update={"name": "small", "runtimes": ["onnxruntime"], "limits": Limits(**wanted)}
    )


def test_a_constrained_profile_is_labelled_emulated_wherever_it_is_shown(exported):
    report, _, _ = profile(
        files(exported), [small(cpus=1)], QUICK, exported.inputs, root=exported.root,
        progress=Silent(),
    )  # fmt: skip
    assert {m.provenance for m in report.measurements} == {"emulated"}
    assert report.environment["small"]["emulated"].startswith("cores")
    budgets = [
        Budget(metric="latency_p50", max="10 s"), Budget(metric="latency_p95", max="10 s"),
        Budget(metric="speedup", min="0.001 x"),
    ]  # fmt: skip
    gate = check_budgets(Gate(budgets=budgets), measured(report))
    assert all("(emulated)" in check.text for check in gate.checks)
    assert all("(emulated)" in place(check) for check in gate.checks)
    assert "small / emulated / onnxruntime" in markdown(gate, "run")


def glutton_file(glutton, role):
    return ExportedFile(role=role, format="onnx", path=str(glutton / "big.onnx"),
                        files=(str(glutton / "big.onnx"),), size=1, seconds=0.0)  # fmt: skip


def test_a_teacher_that_does_not_fit_is_left_out_and_said(exported, glutton):
    student = [file for file in files(exported) if file.role == "student"]
    report, _, _ = profile(
        (glutton_file(glutton, "teacher"), *student), [small(memory="512 MiB")], QUICK,
        exported.inputs[:1], root=exported.root, progress=Silent(),
    )  # fmt: skip
    assert [m.role for m in report.measurements] == ["student"]
    assert report.comparisons == ()
    said = "small: teacher (f32) in onnxruntime: needs more than 512 MiB"
    assert any(text.startswith(said) for text in report.warnings)


def test_a_student_that_does_not_fit_is_an_error(exported, glutton):
    with pytest.raises(
        StageError, match=r"student \(f32\) in onnxruntime: needs more than 512 MiB"
    ):
        profile(
            (glutton_file(glutton, "student"),), [small(memory="512 MiB")], QUICK,
            exported.inputs[:1], root=exported.root, progress=Silent(),
        )  # fmt: skip


def test_a_transport_that_ignores_the_limits_is_not_believed(exported, monkeypatch):
    class Careless(transport.TRANSPORTS.get("local")):
        def measure(self, target, plan, folder, tell):
            super().measure(target, plan | {"limits": None}, folder, tell)

    monkeypatch.setattr(transport.TRANSPORTS, "get", lambda name: Careless)
    with pytest.raises(StageError, match="measured without the limits"):
        profile(
            files(exported), [small(cpus=1)], QUICK, exported.inputs, root=exported.root,
            progress=Silent(),
        )  # fmt: skip


def test_the_shipped_example_reads(tmp_path):
    wanted = find("local-small", tmp_path).limits
    assert wanted.for_device() == {"cpus": 1, "cpu_quota": 0.5, "memory": 512 << 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{cpus: 0}", "at least 1"),
        ("{cpus: []}", "at least 1"),
        ("{cpus: [1, 1]}", "different core numbers"),
        ("{cpus: [-1]}", "different core numbers"),
        ("{cpus: medium}", "limits.cpus"),
        ("{cpu_quota: 0}", "limits.cpu_quota"),
        ("{cpu_quota: .inf}", "finite"),
        ("{cpu_quota: 0.0001}", "limits.cpu_quota"),
        ("{memory: 512}", "limits.memory"),
        ("{memory: '512'}", "KiB, MiB"),
        ("{memory: 1 MiB}", "between 16 MiB"),
        ("{memory: '512 MiB; rm -rf /'}", "512 MiB"),
        ("{cores: 1}", "cores: unknown key"),
        ("yes", "limits"),
    ],
)
def test_limits_that_make_no_sense_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nclass: edge\nlimits: {text}\n")
    with pytest.raises(UsageError, match=message) as caught:
        TARGETS.read(path)
    assert "mine.yaml" in str(caught.value)
