"""The device part as it runs: real processes, real runtimes; alone in a zip file; and its failures."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgekd.profile import device
from edgekd.profile.device import __main__ as program
from edgekd.profile.device import environment, measure, memory
from edgekd.profile.parcel import pack, runner, runner_name

ROOT = Path(device.__file__).parents[3]


def plan(exported, tmp_path, models=None, **settings):
    np.save(tmp_path / "inputs.npy", exported.inputs)
    models = models or [
        {"id": f"{runtime}/{role}", "runtime": runtime, "path": str(exported.folder / f"{role}.{suffix}")}
        for runtime, suffix in (("onnxruntime", "onnx"), ("openvino", "xml"))
        for role in ("teacher", "student")
    ]  # fmt: skip
    return {
        "models": [{"threads": 1, "precision": "f32", **model} for model in models],
        "inputs": str(tmp_path / "inputs.npy"),
        "batch_size": 1, "throughput_batch_size": 8, "interval": 0.2,
        "min_seconds": 0.1, "max_seconds": 0.6, **settings,
    }  # fmt: skip


def student(exported, **changes):
    model = {
        "id": "student",
        "runtime": "onnxruntime",
        "path": str(exported.folder / "student.onnx"),
    }
    return [model | changes]


def run(plan, folder, say=lambda event: None):
    measure.measure(plan, folder, say)
    with np.load(folder / "samples.npz") as archive:
        return json.loads((folder / "result.json").read_text()), dict(archive)


def test_every_figure_is_there_and_agrees_with_the_samples(exported, tmp_path):
    events = []
    result, samples = run(plan(exported, tmp_path), tmp_path, events.append)
    assert list(result["models"]) == [
        "onnxruntime/teacher", "onnxruntime/student", "openvino/teacher", "openvino/student",
    ]  # fmt: skip
    for name, model in result["models"].items():
        assert model["precision"] == "f32"
        assert 0 < model["baseline_rss"] <= model["peak_rss"] < 2**31
        assert 0 < model["load"] < 60
        assert 0 < model["first"] < 60
        for phase, batch in (("latency", 1), ("throughput", 8)):
            times, rounds = samples[f"{name}/{phase}"], samples[f"{name}/{phase}/rounds"]
            assert model[phase]["batch_size"] == batch
            assert model[phase]["warmup"] >= 4
            assert len(times) == len(rounds)
            assert times.min() > 0
            assert times.sum() >= 0.1
            assert (np.diff(rounds) >= 0).all()
            assert set(rounds) == set(range(rounds[-1] + 1))
    assert {event["phase"] for event in events} == {"latency", "throughput", "launches"}
    assert "cpu_model" in result["environment"]
    assert result["environment"]["state_after"].keys() == result["environment"]["state"].keys()


def test_the_larger_model_needs_more_memory(exported, tmp_path):
    result, _ = run(plan(exported, tmp_path), tmp_path)
    used = {n: m["peak_rss"] - m["baseline_rss"] for n, m in result["models"].items()}
    assert used["onnxruntime/teacher"] > used["onnxruntime/student"]
    assert used["onnxruntime/teacher"] > 1_200_000  # its weights alone


def test_time_that_is_up_is_inconclusive_not_a_result(exported, tmp_path):
    # A clock of 10 ns can make all medians equal: not even that is narrower than 0.
    result, _ = run(plan(exported, tmp_path, student(exported), interval=0.0), tmp_path)
    assert result["models"]["student"]["latency"]["conclusive"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/nowhere/student.onnx"}, "student: .*nowhere"),
        ({"precision": "bf16"}, "student: ValueError: .*f32, not in bf16"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(exported, tmp_path, changes, message):
    with pytest.raises(measure.MeasureError, match=message):
        run(plan(exported, tmp_path, student(exported, **changes)), tmp_path)
    assert not (tmp_path / "result.json").exists()


def children(parent):
    """Process numbers of the workers that `parent` started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


def test_a_process_that_dies_is_an_error_that_says_how(exported, tmp_path):
    def kill(event):
        for child in children(os.getpid()):
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"edgekd.profile.device" in command:
                os.kill(child, signal.SIGKILL)

    with pytest.raises(measure.MeasureError, match=r"student: its process ended by signal 9"):
        run(plan(exported, tmp_path, student(exported)), tmp_path, kill)


def command(plan, tmp_path, **options):
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = [sys.executable, "-m", "edgekd.profile.device", "measure"]
    return subprocess.Popen(
        [*arguments, str(tmp_path / "plan.json"), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip


def test_an_interrupt_that_was_swallowed_is_told_with_the_next_event(monkeypatch):
    monkeypatch.setattr(program, "_told_to_end", threading.Event())
    with contextlib.suppress(KeyboardInterrupt):
        program._end(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        program._say({})


def test_interrupted_it_ends_quietly_and_leaves_no_process(exported, tmp_path):
    process = command(
        plan(exported, tmp_path, student(exported), interval=0, max_seconds=60), tmp_path,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_from_the_command_line_an_error_is_the_last_line(exported, tmp_path):
    process = command(plan(exported, tmp_path, student(exported, path="/nowhere")), tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "nowhere" in json.loads(output.splitlines()[-1])["error"]


def test_packed_for_another_machine_it_runs_without_edgekd(exported, tmp_path):
    parts = {
        str(exported.root / file.path): [str(exported.root / part) for part in file.files]
        for file in exported.files
    }
    here = plan(exported, tmp_path)
    models = [{**model, "parts": parts[model["path"]]} for model in here["models"]]
    parcel = pack({**here, "models": models})
    device = tmp_path / "device"
    for name, path in parcel.files.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, device / name)
    (device / runner_name()).write_bytes(runner())
    (device / "plan.json").write_text(json.dumps(parcel.plan))
    # A module of the user's in the current folder must not be taken for numpy.
    (device / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTHONPATH"))}
    result = subprocess.run(
        [sys.executable, "-P", runner_name(), "measure", "plan.json", "."], cwd=device,
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    assert len(json.loads((device / "result.json").read_text())["models"]) == 4


def test_a_file_packed_twice_has_one_name_and_a_changed_one_another(exported, tmp_path):
    def names():
        return set(pack({**here, "models": models}).files)

    models = [{**student(exported)[0], "parts": [student(exported)[0]["path"]]}]
    here = plan(exported, tmp_path, models)
    before = names()
    assert names() == before
    inputs = np.load(tmp_path / "inputs.npy")
    np.save(tmp_path / "inputs.npy", inputs + 1)
    assert len(names() & before) == 1


def test_the_device_part_imports_nothing_of_edgekd_outside_itself():
    import ast

    allowed = {"numpy", "onnxruntime", "openvino", *sys.stdlib_module_names}
    for path in Path(device.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, path


class TestMemory:
    def test_the_peak_is_that_since_the_reset(self):
        before = memory.resident()
        memory.reset_peak()
        block = np.ones(64 << 20, np.uint8)
        del block
        assert 60 << 20 < memory.peak() - before < 90 << 20
        memory.reset_peak()
        assert memory.peak() - memory.resident() < 30 << 20


class TestEnvironment:
    def test_it_describes_this_machine_and_is_plain_json(self):
        described = environment.describe()
        assert json.loads(json.dumps(described)) == described
        assert described["cores"] == os.cpu_count()
        assert described["memory_bytes"] > 2**28
        assert described["architecture"]

    def test_noise_is_reported_and_quiet_is_not(self):
        quiet = {
            "load_average": 0.1, "throttle_count": 3, "temperature_celsius": None,
            "frequency_mhz": 2000.0, "cpu_seconds": {"all": 100.0, "stolen": 1.0},
        }  # fmt: skip
        later = quiet | {"cpu_seconds": {"all": 200.0, "stolen": 1.5}}
        assert environment.complaints(quiet, later, 4) == []
        noisy = quiet | {"throttle_count": 9, "cpu_seconds": {"all": 200.0, "stolen": 21.0}}
        found = environment.complaints(quiet | {"load_average": 3.0}, noisy, 4)
        assert [word for text in found for word in ("load", "throttled", "20%") if word in text] == [
            "load", "throttled", "20%",
        ]  # fmt: skip

    def test_busy_neighbours_are_reported_where_no_core_is_left_for_them(self):
        before = dict.fromkeys(("load_average", "throttle_count"))
        before |= {"cpu_seconds": {"all": 0.0, "busy": 0.0, "stolen": 0.0}}
        after = before | {"cpu_seconds": {"all": 40.0, "busy": 22.0, "stolen": 0.0}}
        (found,) = environment.complaints(before, after, 4, 1, own=10.0)
        assert found == "other processes kept 1.2 of 4 cores busy while measuring"
        assert environment.complaints(before, after, 4, 1, own=20.0) == []

    @pytest.mark.parametrize(
        ("then", "now", "words"),
        [
            (0x0, 0x0, []),
            (0x50000, 0x50000, []),  # long ago
            (0x0, 0x10000, ["voltage"]),
            (0x0, 0x4, ["throttled"]),
            (0x50005, 0x50005, ["voltage", "throttled"]),
            (None, 0x4, []),
        ],
    )
    def test_what_a_raspberry_pis_firmware_says_is_understood(self, then, now, words):
        states = [{"throttle_count": None, "firmware_throttled": flags} for flags in (then, now)]
        found = environment.throttling(*states)
        assert len(found) == len(words)
        assert all(word in text for word, text in zip(words, found, strict=True))

    @pytest.mark.parametrize(
        ("text", "flags"), [("50005", 0x50005), ("0x4", 4), ("0", 0), ("nonsense", None)]
    )
    def test_the_firmwares_flags_are_read_from_the_kernel(self, tmp_path, monkeypatch, text, flags):
        path = tmp_path / "get_throttled"
        path.write_text(f"{text}\n")
        monkeypatch.setattr(environment, "_PI_THROTTLED", path)
        assert environment.state()["firmware_throttled"] == flags

    def test_the_firmwares_own_tool_is_asked_where_the_kernel_does_not_say(
        self, tmp_path, monkeypatch
    ):
        tool = tmp_path / "vcgencmd"
        tool.write_text("#!/bin/sh\n[ $1 = get_throttled ] && echo throttled=0x50005\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(environment, "_PI_THROTTLED", tmp_path / "missing")
        assert environment.state()["firmware_throttled"] == 0x50005

    def test_clusters_of_cores_are_the_slowest_first(self, tmp_path, monkeypatch):
        for core in range(4):
            folder = tmp_path / f"cpu{core}"
            (folder / "cpufreq").mkdir(parents=True)
            (folder / "cpu_capacity").write_text("1024" if core > 1 else "381")
            (folder / "cpufreq/cpuinfo_max_freq").write_text("2400000" if core > 1 else "1800000")
        monkeypatch.setattr(environment, "_CPU", tmp_path)
        assert environment.clusters() == [
            {"cpus": [0, 1], "max_frequency_mhz": 1800.0, "capacity": 381},
            {"cpus": [2, 3], "max_frequency_mhz": 2400.0, "capacity": 1024},
        ]

    def test_what_a_machine_does_not_say_is_none(self):
        nothing = dict.fromkeys(
            (
                "load_average",
                "throttle_count",
                "temperature_celsius",
                "frequency_mhz",
                "cpu_seconds",
            )
        )
        assert environment.complaints(nothing, nothing, None) == []

    def test_a_busy_machine_shows_as_load(self, monkeypatch):
        monkeypatch.setattr(os, "getloadavg", lambda: (7.5, 1.0, 1.0))
        assert environment.state()["load_average"] == 7.5


def test_launches_are_fresh_processes_and_their_starts_are_all_kept(exported, tmp_path):
    processes = set()

    def watch(event):
        processes.update(children(os.getpid()))

    result, samples = run(
        plan(exported, tmp_path, student(exported), launches=3, max_seconds=30, interval=0.99),
        tmp_path, watch,
    )  # fmt: skip
    model = result["models"]["student"]
    count = model["launches"]
    assert count >= 3
    assert len(processes) >= count
    for key in ("runtime_seconds", "load", "first"):
        assert len(model["cold"][key]) == count
        assert min(model["cold"][key]) > 0
    assert model["load"] == np.median(model["cold"]["load"])
    assert model["python_rss"] < model["baseline_rss"]
    assert 0 < model["private_dirty"] < 2**28
    for phase in ("latency", "throughput"):
        launches, rounds = (samples[f"student/{phase}/{name}"] for name in ("launches", "rounds"))
        assert set(launches) == set(range(count))
        # No round belongs to two launches.
        assert len(set(zip(launches, rounds, strict=True))) == rounds[-1] + 1
    assert "build" not in model
    assert "Build" in result["environment"]["runtimes"]["onnxruntime"]


def test_openvino_says_how_much_of_loading_is_compiling(exported, tmp_path):
    model = {"id": "ov", "runtime": "openvino", "path": str(exported.folder / "student.xml")}
    cold = run(plan(exported, tmp_path, [model]), tmp_path)[0]["models"]["ov"]["cold"]
    assert 0 < cold["compile"][0] < cold["load"][0]


def test_multistream_runs_queries_of_eight_until_there_are_enough(exported, tmp_path):
    settings = {"phases": ["latency", "multistream"], "min_calls": {"multistream": 662}}
    result, samples = run(
        plan(exported, tmp_path, student(exported), max_seconds=20, **settings), tmp_path
    )
    assert result["models"]["student"]["multistream"]["batch_size"] == 8
    assert len(samples["student/multistream"]) >= 662


def test_a_neighbour_on_the_same_core_makes_a_noisy_measurement(exported, tmp_path):
    core = min(os.sched_getaffinity(0))
    pinned = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", pinned])
    try:
        result, _ = run(
            plan(exported, tmp_path, student(exported), limits={"cpus": [core]}), tmp_path
        )
    finally:
        neighbour.kill()
        neighbour.wait()
    assert any("wait for a core" in text for text in result["models"]["student"]["noise"])


def test_little_waiting_is_no_noise_and_much_is():
    assert environment.noise(0.01, 1.0) == []
    assert environment.noise(None, 1.0) == []
    assert environment.noise(0.3, 1.0) == ["it had to wait for a core for 30% of the time"]


@pytest.mark.timing
def test_the_same_file_twice_is_as_fast_as_itself_even_beside_a_busy_neighbour(exported, tmp_path):
    from edgekd.profile.statistics import Samples, speedup

    models = [student(exported)[0] | {"id": name} for name in ("a", "b")]
    stop = threading.Event()
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        _, samples = run(
            plan(exported, tmp_path, models, interval=0.02, min_seconds=1, max_seconds=8), tmp_path
        )
    finally:
        stop.set()
        neighbour.kill()
        neighbour.wait()
    a, b = (Samples(samples[f"{n}/latency"], samples[f"{n}/latency/rounds"]) for n in "ab")
    _, (low, high) = speedup(a, b)
    assert low < 1.1
    assert high > 0.9
