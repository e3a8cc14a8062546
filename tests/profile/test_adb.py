"""adb as it runs: the real client and server, and a device that speaks adbd's side of the protocol."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgekd
from edgekd.config.schema import Profile
from edgekd.errors import StageError, UsageError
from edgekd.profile.measure import profile
from edgekd.profile.native.tool import TOOLS, Job
from edgekd.profile.targets import TARGETS, Target
from edgekd.profile.transports import adb as transport
from edgekd.profile.transports.adb import find_device
from edgekd.progress import Silent
from tests.profile.adb_device import AdbDevice
from tests.teachers.servers import free_ports

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed")

QUICK = Profile(interval=0.5, min_seconds=0.05, max_seconds=0.1, throughput_batch_size=4)
STAND_IN = Path(__file__).with_name("perf_tool.py")
PYTHON = sys.executable


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """An adb server of our own: another port, another key."""
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("ANDROID_SERIAL", raising=False)
        yield
        adb("kill-server")


def adb(*arguments):
    return subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def attached(root, **options):
    """A device, connected; its folder is `root`."""
    (root / "bin").mkdir(parents=True, exist_ok=True)
    with AdbDevice(root, **options) as device:
        adb("connect", device.serial)
        try:
            yield device
        finally:
            adb("disconnect", device.serial)


@pytest.fixture
def device(tmp_path):
    with attached(tmp_path / "device root") as found:
        yield found


def target(device, runtimes=("onnxruntime",), **settings):
    how = settings or {"python": PYTHON}
    folder = how.pop("folder", f"{device.root}/it's $(touch pwned) here")
    return Target.model_validate(
        {"name": "phone", "class": "mobile", "transport": "adb", "runtimes": list(runtimes),
         "adb": {"folder": folder, **how}}
    )  # fmt: skip


def measure(exported, device, settings=QUICK, roles=("student",), **how):
    return profile(
        tuple(file for file in exported.files if file.role in roles), [target(device, **how)],
        settings, exported.inputs, root=exported.root, progress=Silent(),
    )  # fmt: skip


def program(device, name, text):
    """An executable file on the device."""
    path = device.root / "bin" / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def tool(device):
    return {
        "runner": "onnxruntime_perf_test",
        "runner_path": program(device, "perf test", f"#!{PYTHON}\n{STAND_IN.read_text()}"),
    }


def left(device):
    """Processes that the device still runs, by their environment."""
    mark = f"HOME={device.root}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                found.append(path.parent.name)
    return found


def gone(device, seconds=20):
    """Whether the device's processes end by themselves."""
    end = time.monotonic() + seconds
    while left(device) and time.monotonic() < end:
        time.sleep(0.1)
    return not left(device)


class TestPython:
    @pytest.mark.parametrize("features", [("shell_v2", "cmd", "stat_v2"), ()])
    def test_teacher_and_student_are_measured(self, exported, tmp_path, features):
        with attached(tmp_path / "device root", features=features) as device:
            report, samples, _ = measure(exported, device, roles=("teacher", "student"))
            assert len(report.measurements) == 2
            assert len(report.comparisons) == 1
            for m in report.measurements:
                assert m.provenance == "measured"
                assert m.latency.kind == "call"
                times = samples[m.latency.samples]
                assert m.latency.p50 == np.quantile(times, 0.5, method="inverted_cdf")
                assert m.memory.peak_rss > m.memory.baseline_rss > 0
            assert report.environment["phone"]["cpu_model"]
            assert gone(device)
            assert not (device.root / "pwned").exists()
            assert [path.name for path in folder(device).iterdir() if "job" in path.name] == []

    @pytest.mark.slow
    def test_nothing_is_sent_twice(self, exported, device):
        measure(exported, device)
        first = list(device.pushed)
        measure(exported, device)
        again = device.pushed[len(first) :]
        assert [Path(path).name for path in again] == ["plan.json.part"]
        assert all(path.endswith(".part") for path in first)
        for path in first:
            assert not Path(path).exists()

    def test_a_truncated_file_is_not_taken_for_the_whole_one(self, exported, device):
        program(device, "sha256sum", "#!/bin/sh\necho 0000000000000000")
        with pytest.raises(StageError, match="did not arrive whole"):
            measure(exported, device)
        assert list(folder(device).rglob("*.onnx*")) == []

    @pytest.mark.slow
    def test_without_sha256sum_the_size_is_compared(self, exported, device):
        program(device, "sha256sum", "#!/bin/sh\nexit 127")
        report, _, _ = measure(exported, device)
        assert len(report.measurements) == 1

    def test_a_missing_python_or_runtime_is_said_before_anything_is_sent(self, exported, device):
        with pytest.raises(StageError, match=r"adb\.python cannot be run.*not found"):
            measure(exported, device, python="/nowhere/python3")
        bare = program(device, "python", f'#!/bin/sh\nexec {PYTHON} -S "$@"')
        with pytest.raises(StageError, match="has no numpy, onnxruntime") as caught:
            measure(exported, device, python=bare)
        assert "pip install numpy onnxruntime" in str(caught.value)
        assert device.pushed == []

    def test_an_error_there_is_told_in_its_own_words(self, exported, device):
        how = target(device).model_copy(update={"precision": "bf16"})
        with pytest.raises(StageError, match=r"target phone.*f32, not in bf16"):
            profile(exported.files, [how], QUICK, exported.inputs, root=exported.root,
                    progress=Silent())  # fmt: skip
        assert gone(device)

    @pytest.mark.slow
    def test_the_android_emulator_is_labelled(self, exported, device):
        program(device, "getprop", '#!/bin/sh\n[ "$1" = ro.boot.qemu ] && echo 1')
        report, _, _ = measure(exported, device)
        assert "emulator" in report.environment["phone"]["emulated"]


def folder(device):
    return device.root / "it's $(touch pwned) here" if device else None


class TestNative:
    @pytest.mark.slow
    def test_every_call_of_onnxruntime_perf_test_is_a_sample(self, exported, device):
        report, samples, _ = measure(exported, device, roles=("teacher", "student"), **tool(device))
        teacher, student = report.measurements
        assert (teacher.role, student.role) == ("teacher", "student")
        assert report.comparisons[0].speedup > 1
        for m in report.measurements:
            assert m.latency.kind == "call"
            assert m.latency.count == len(samples[m.latency.samples]) >= 5
            assert 1e-6 < m.latency.p50 < 1
            assert m.throughput_latency.batch_size == 4
            assert 0 < m.load < 60
            assert m.precision == "f32"
        assert teacher.memory.peak_rss > teacher.memory.baseline_rss > 10_000_000
        assert report.environment["phone"]["architecture"] == os.uname().machine
        assert gone(device)
        assert not (device.root / "pwned").exists()

    @pytest.mark.slow
    def test_benchmark_app_gives_medians_and_says_so(self, exported, device):
        path = program(
            device, "benchmark_app",
            f"#!/bin/sh\nexec {PYTHON} -c 'from openvino.tools.benchmark.main import main; main()' \"$@\"",
        )  # fmt: skip
        report, samples, _ = measure(
            exported, device, runtimes=("openvino",), runner="benchmark_app", runner_path=path
        )
        for m in report.measurements:
            assert m.latency.kind == "median"
            assert m.latency.count == len(samples[m.latency.samples])
            assert 1e-6 < m.latency.p50 < 1
            assert m.precision == "f32"
            assert m.runtime_version[:3] == "202"
        assert any("median of a run" in text for text in report.warnings)

    @pytest.mark.slow
    def test_a_runner_from_here_is_sent_once(self, exported, device, tmp_path):
        here = tmp_path / "onnxruntime_perf_test"
        here.write_text(f"#!{PYTHON}\n{STAND_IN.read_text()}")
        how = {"runner": "onnxruntime_perf_test", "runner_files": [str(here)]}
        report, _, _ = measure(exported, device, **how)
        assert len(report.measurements) == 1
        assert sum("onnxruntime_perf_test" in path for path in device.pushed) == 1
        with pytest.raises(UsageError, match="no file"):
            measure(exported, device, runner="onnxruntime_perf_test", runner_files=["/nowhere"])

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("echo no such option >&2; exit 1", "exit code 1: no such option"),
            ("kill -9 $$", "exit code 137"),
            ("exit 0", r"No such file|calls\.csv"),
            ("for last; do :; done; echo garbage >\"$last\"", "1 lines for"),
            ("for last; do :; done; yes x,0,1,1,0 | head -c 5000000 >\"$last\"", "larger than"),
            ("yes", "more than edgekd reads"),
            ("printf '\\033[31mowned'; exit 3", r"exit code 3: \[31mowned"),
        ],
    )  # fmt: skip
    def test_what_is_not_its_output_is_refused(
        self, exported, device, monkeypatch, script, message
    ):
        monkeypatch.setattr(transport, "_MOST_OUTPUT", 1 << 20)
        path = program(device, "perf", f"#!/bin/sh\n{script}")
        with pytest.raises(StageError, match=message) as caught:
            measure(exported, device, runner="onnxruntime_perf_test", runner_path=path)
        assert "\033" not in str(caught.value)
        assert gone(device)


@pytest.fixture
def android(tmp_path):
    """A device with Android's shell and tools, and no others."""
    if not (shutil.which("mksh") and shutil.which("toybox")):
        pytest.skip("mksh and toybox are not installed")
    tools = tmp_path / "toybox"
    tools.mkdir()
    for name in subprocess.check_output(["toybox"], text=True).split():
        (tools / name).symlink_to(shutil.which("toybox"))
    with attached(tmp_path / "android", shell=shutil.which("mksh"), path=str(tools)) as found:
        yield found


class TestAndroidsOwnShell:
    def test_python(self, exported, android):
        report, _, _ = measure(exported, android)
        assert len(report.measurements) == 1
        assert gone(android)
        assert not (folder(android) / "lock").exists()

    @pytest.mark.slow
    def test_a_native_tool(self, exported, android):
        report, _, _ = measure(exported, android, **tool(android))
        assert report.measurements[0].memory.peak_rss > 10_000_000
        assert report.environment["phone"]["cores"] >= 1
        with pytest.raises(StageError, match="exit code 127"):
            measure(exported, android, runner="onnxruntime_perf_test", runner_path="/nowhere/x")
        assert gone(android)


class TestParsing:
    job = Job("m", "f", (1,), True, 1, "f32", calls=2)
    good = b"m,1.5e-05,100,99,0\nm,2e-05,100,99,1\n"
    text = "Session creation time cost: 0.01 s\nFirst inference time cost: 2 ms\n"

    def test_calls_in_order(self):
        figures = TOOLS.get("onnxruntime_perf_test")().figures(self.job, self.text, self.good)
        assert figures.samples.tolist() == [2e-05]  # the first tenth, rounded up, is warm-up
        assert (figures.load, figures.first) == (0.01, 0.002)

    @pytest.mark.parametrize(
        "report",
        [
            b"", good[:20], good + good, good.replace(b",1\n", b",7\n"),
            good.replace(b"2e-05", b"nan"), good.replace(b"2e-05", b"-1"),
            good.replace(b"2e-05", b"0"), good.replace(b"2e-05", b"1e300"),
            good.replace(b"2e-05", b"1_0"), good.replace(b"2e-05", b"__import__('os')"),
        ],
    )  # fmt: skip
    def test_a_broken_result_file_is_refused(self, report):
        with pytest.raises(StageError):
            TOOLS.get("onnxruntime_perf_test")().figures(self.job, self.text, report)

    def test_output_without_what_is_needed_is_refused(self):
        with pytest.raises(StageError, match="no session creation"):
            TOOLS.get("onnxruntime_perf_test")().figures(self.job, "", self.good)

    benchmark = (
        "[ INFO ] Build ................................. 2026.4.1-22982-e213a147257\n"
        "[ INFO ] Read model took 1.00 ms\n[ INFO ] Compile model took 2.00 ms\n"
        "[ INFO ]   INFERENCE_PRECISION_HINT: {precision}\n"
        "[ INFO ] First inference took 0.50 ms\n[ INFO ] Count:               2 iterations\n"
        "[ INFO ]    Median:        {median}\n"
    )

    @pytest.mark.parametrize(
        ("precision", "median", "report", "expected"),
        [
            ("<Type: 'float32'>", "19.60 us", b"{}", 19.6e-6),
            ("f32", "12.34 ms", b"not json", 12.34e-3),
            ("f32", "0.02 ms", b'{"execution_results": {"latency_median": 0.0213}}', 21.3e-6),
        ],
    )
    def test_medians_of_both_programs(self, precision, median, report, expected):
        text = self.benchmark.format(precision=precision, median=median)
        figures = TOOLS.get("benchmark_app")().figures(self.job, text, report)
        assert figures.median == pytest.approx(expected)
        assert figures.precision == "f32"
        assert figures.load == pytest.approx(0.003)
        assert figures.version == "2026.4.1"

    def test_a_median_of_too_few_digits_is_refused(self):
        text = self.benchmark.format(precision="f32", median="0.02 ms")
        with pytest.raises(StageError, match="too few digits"):
            TOOLS.get("benchmark_app")().figures(self.job, text, b"{}")

    def test_fewer_calls_than_asked_for_are_refused(self):
        text = self.benchmark.format(precision="f32", median="12.34 ms").replace("2 iter", "1 iter")
        with pytest.raises(StageError, match="1 calls of 2"):
            TOOLS.get("benchmark_app")().figures(self.job, text, b"{}")


class TestChoosing:
    def test_none(self):
        with pytest.raises(UsageError, match="sees no device"):
            find_device(None)

    def test_the_only_one(self, device):
        assert find_device(None) == device.serial

    def test_of_two_one_must_be_named(self, device, tmp_path, monkeypatch):
        with attached(tmp_path / "other") as other:
            with pytest.raises(UsageError, match=f"2 devices: .*{other.serial}"):
                find_device(None)
            assert find_device(other.serial) == other.serial
            monkeypatch.setenv("ANDROID_SERIAL", device.serial)
            assert find_device(None) == device.serial
        with pytest.raises(UsageError, match="does not see the device 'other'; it sees: 127"):
            find_device("other")

    def test_one_that_has_not_accepted_our_key(self, tmp_path):
        with (
            attached(tmp_path / "device", authorized=False),
            pytest.raises(UsageError, match="unauthorized") as caught,
        ):
            find_device(None)
        assert "allow USB debugging" in str(caught.value)

    def test_without_adb(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(UsageError, match="adb is not installed"):
            find_device(None)


class TestMishaps:
    @pytest.mark.slow
    def test_the_device_goes_away_in_the_middle(self, exported, device):
        class Unplug(Silent):
            def advance(self, amount=1, **figures):
                device.disconnect()

        with pytest.raises(StageError, match=r"connection to the device ended|adb") as caught:
            profile(exported.files, [target(device)], Profile(interval=1e-9, max_seconds=60.0),
                    exported.inputs, root=exported.root, progress=Unplug())  # fmt: skip
        assert "phone" in str(caught.value)
        assert gone(device)
        adb("disconnect", device.serial)
        adb("connect", device.serial)
        pushed = len(device.pushed)
        assert len(measure(exported, device)[0].measurements) == 1
        assert [Path(path).name for path in device.pushed[pushed:]] == ["plan.json.part"]

    def test_a_full_disk_leaves_no_part_and_later_works(self, exported, device, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "none", str(disk)])
        if mounted.returncode != 0:
            pytest.skip("this user may not mount a small disk")
        try:
            with pytest.raises(StageError, match=r"cannot send \S+: .*No space") as caught:
                measure(exported, device, python=PYTHON, folder=f"{disk}/edgekd")
            assert "free some space" in str(caught.value)
            assert list(disk.rglob("*.part")) == []
            subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
            report, _, _ = measure(exported, device, python=PYTHON, folder=f"{disk}/edgekd")
            assert len(report.measurements) == 1
        finally:
            gone(device)
            subprocess.run(["umount", str(disk)], check=True)

    def test_a_second_job_does_not_disturb_the_first(self, exported, device):
        class Second(Silent):
            refused = None

            def advance(self, amount=1, **figures):
                if self.refused is None:
                    with pytest.raises(StageError, match="another job is measuring") as caught:
                        measure(exported, device)
                    type(self).refused = caught.value

        report, _, _ = profile(exported.files, [target(device)], QUICK, exported.inputs,
                            root=exported.root, progress=Second())  # fmt: skip
        assert Second.refused
        assert len(report.measurements) == 2

    def test_a_lock_that_a_crash_left_is_no_obstacle(self, exported, device):
        (folder(device) / "lock").mkdir(parents=True)
        (folder(device) / "lock" / "pid").write_text("999999999")
        (folder(device) / "job-of-the-dead").mkdir()
        assert len(measure(exported, device)[0].measurements) == 1
        assert sorted(path.name.partition("-")[0] for path in folder(device).iterdir()) == [
            "files", "runner",
        ]  # fmt: skip

    @pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
    def test_when_we_end_the_device_stops(self, exported, device, tmp_path, signal_number):
        code = (
            "import sys, json, numpy as np\n"
            "from pathlib import Path\n"
            "from edgekd.profile.targets import Target\n"
            "from edgekd.profile.transport import TRANSPORTS\n"
            "target, plan = (json.loads(a) for a in sys.argv[1:3])\n"
            "TRANSPORTS.get('adb')().measure(Target.model_validate(target), plan,\n"
            "    Path(sys.argv[3]), lambda event: print('event', flush=True))\n"
        )
        np.save(tmp_path / "inputs.npy", exported.inputs)
        path = str(exported.folder / "student.onnx")
        plan = {
            "models": [{"id": "phone/onnxruntime/student", "runtime": "onnxruntime", "path": path,
                        "parts": [path], "threads": 1, "precision": "f32"}],
            "inputs": str(tmp_path / "inputs.npy"), "batch_size": 1, "throughput_batch_size": 4,
            "interval": 0, "min_seconds": 1, "max_seconds": 60,
        }  # fmt: skip
        described = target(device).model_dump(mode="json", by_alias=True)
        process = subprocess.Popen(
            [PYTHON, "-c", code, json.dumps(described), json.dumps(plan), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(edgekd.__file__).parents[1])},
        )  # fmt: skip
        assert process.stdout.readline() == "event\n"
        assert left(device)
        process.send_signal(signal_number)
        process.wait(20)
        process.stdout.close()
        assert gone(device)
        assert not (folder(device) / "lock").exists()


class TestHostile:
    @pytest.mark.parametrize(
        "changes",
        [
            {"serial": "-s; reboot"}, {"serial": "a b"}, {"serial": "$(id)"}, {"serial": ""},
            {"folder": "relative"}, {"folder": "/data/../etc"}, {"folder": "/a\nb"},
            {"python": "python3"}, {"python": "/a\0b"},
            {"runner": "sh", "runner_path": "/bin/sh", "python": None},
            {"runner": "benchmark_app", "python": None},
            {"runner": "benchmark_app", "runner_path": "/x"},
            {"runner_path": "/x"}, {"unknown": 1},
        ],
    )  # fmt: skip
    def test_a_descriptor_is_refused_with_its_line(self, tmp_path, changes):
        settings = {"python": "/bin/python3"} | changes
        path = tmp_path / "phone.yaml"
        described = {"name": "phone", "class": "mobile", "transport": "adb",
                     "runtimes": ["onnxruntime"], "adb": settings}  # fmt: skip
        path.write_text(json.dumps(described))
        with pytest.raises(UsageError, match=r"phone\.yaml:1: adb"):
            TARGETS.read(path)

    def test_a_runner_of_another_runtime_is_refused(self, tmp_path):
        path = tmp_path / "phone.yaml"
        path.write_text(
            "name: phone\nclass: mobile\ntransport: adb\nruntimes: [onnxruntime]\n"
            "adb: {runner: benchmark_app, runner_path: /x}\n"
        )
        with pytest.raises(
            UsageError, match=r"phone\.yaml:4: runtimes: benchmark_app runs openvino"
        ):
            TARGETS.read(path)
        path.write_text("name: phone\nclass: mobile\ntransport: adb\n")
        with pytest.raises(UsageError, match=r"phone\.yaml:3: transport: .*adb"):
            TARGETS.read(path)

    def test_words_of_a_descriptor_are_words_there(self, exported, device):
        evil = f"/nowhere/$(touch {device.root}/pwned); touch {device.root}/pwned #'"
        with pytest.raises(StageError, match="cannot be run"):
            measure(exported, device, python=evil, folder=f"{device.root}/x")
        with pytest.raises(StageError, match="exit code 127"):
            measure(
                exported, device, folder=f"{device.root}/x; touch pwned",
                runner="onnxruntime_perf_test", runner_path=evil,
            )  # fmt: skip
        assert not list(device.root.rglob("pwned"))

    @pytest.mark.parametrize(
        "script",
        [
            "while :; do echo '{\"phase\": 1}'; done",
            "head -c 2000000 /dev/zero",
            'echo \'{"error": {"a": "\\u001b[31m"}}\'; exit 3',
            "exit 0",
        ],
    )
    def test_a_python_that_is_none_cannot_harm(self, exported, device, monkeypatch, script):
        monkeypatch.setattr(transport, "_MOST_OUTPUT", 1 << 20)
        path = program(
            device, "python",
            f"#!/bin/sh\n[ \"$1\" = -c ] && {{ echo missing:; exit; }}\n{script}",
        )  # fmt: skip
        with pytest.raises(StageError) as caught:
            measure(exported, device, python=path)
        assert "\033" not in str(caught.value)
        assert gone(device)
