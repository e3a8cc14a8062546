"""Measuring over a real sshd: what is sent, what survives, what ends, and what is refused."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgekd.config.schema import Config, Profile
from edgekd.errors import StageError, UsageError
from edgekd.gate.baseline import launches
from edgekd.pipeline.stages import LINE
from edgekd.profile.check import as_yaml, check, probed, target_at
from edgekd.profile.measure import profile
from edgekd.profile.targets import TARGETS, Target
from edgekd.profile.transports import ssh
from edgekd.profile.transports.ssh import ATTEMPTS, OpenSsh
from edgekd.progress import Lines
from tests.profile.ssh_device import wait_until

SYSTEM_PYTHON = "/usr/bin/python3"
ENDLESS = {"interval": 0, "max_seconds": 600}


def target(timeouts=None, arch=None, runtimes=("onnxruntime",), **ssh):
    ssh = {"host": "device", "python": sys.executable, "timeouts": timeouts or {}, **ssh}
    return Target.model_validate(
        {"name": "board", "class": "edge", "transport": "ssh", "arch": arch, "ssh": ssh,
         "runtimes": list(runtimes)}
    )  # fmt: skip


@pytest.fixture
def plan(exported, tmp_path):
    np.save(tmp_path / "inputs.npy", exported.inputs)
    path = str(exported.folder / "student.onnx")
    model = {"id": "board/onnxruntime/student", "runtime": "onnxruntime", "path": path,
             "parts": [path], "threads": 1, "precision": "f32"}  # fmt: skip
    return {
        "models": [model], "inputs": str(tmp_path / "inputs.npy"), "phases": ["latency"],
        "batch_size": 1, "throughput_batch_size": 8, "interval": 0.5,
        "min_seconds": 0.05, "max_seconds": 0.3,
    }  # fmt: skip


def measure(target, plan, folder, tell=lambda event: None):
    """The samples; messages go to `tell` with the events."""
    (folder / "out").mkdir(exist_ok=True)
    OpenSsh().measure(target, plan, folder / "out", tell)
    with np.load(folder / "out/samples.npz", allow_pickle=False) as samples:
        return dict(samples)


def messages(events):
    return [event["message"] for event in events if "message" in event]


def left_over(device):
    """What an ended visit should not leave: unfinished files and processes."""
    found = [*device.processes()]
    # A folder that goes away while it is walked through is no error, as it is with rglob.
    for folder, folders, files in os.walk(device.home):
        found += [name for name in (*folders, *files) if name.endswith(".tmp")]
        found += folders + files if Path(folder).name == "runs" else []
    return found


def test_models_are_measured_there_as_they_would_be_here(device, exported, tmp_path, capsys):
    report, samples, _ = profile(
        exported.files, [target(runtimes=("onnxruntime", "openvino"))],
        Profile(min_seconds=0.1, max_seconds=0.5, interval=0.3), exported.inputs,
        root=exported.root, progress=Lines(),
    )  # fmt: skip
    assert [(m.target, m.runtime, m.role) for m in report.measurements] == [
        ("board", runtime, role)
        for runtime in ("onnxruntime", "openvino") for role in ("teacher", "student")
    ]  # fmt: skip
    for m in report.measurements:
        assert m.latency.count == len(samples[m.latency.samples]) > 10
        assert m.runtime_version
    assert all(c.speedup > 1 for c in report.comparisons)
    assert "python" in report.environment["board"]
    # Two ONNX files, two OpenVINO models of two parts each, and the inputs.
    assert "sending 7 files" in capsys.readouterr().err
    assert not left_over(device)


def test_nothing_is_sent_twice_and_nothing_damaged_is_trusted(device, plan, tmp_path):
    first, second, third = [], [], []
    measure(target(), plan, tmp_path, first.append)
    files = {path: path.stat().st_ino for path in device.home.rglob("*") if path.is_file()}
    assert any(path.name == "student.onnx" for path in files)
    measure(target(), plan, tmp_path, second.append)
    assert messages(second) == []
    assert {path: path.stat().st_ino for path in files} == files
    for model in (path for path in files if path.name == "student.onnx"):
        model.write_bytes(model.read_bytes()[:-1] + b"!")
    for runner in device.home.rglob("runner-*.pyz"):
        runner.write_bytes(b"cut off")
    measure(target(), plan, tmp_path, third.append)
    assert [text.partition("(")[0] for text in messages(third)] == ["sending 1 files "]
    name = next(path for path in files if path.name == "student.onnx")
    assert name.read_bytes() == Path(plan["models"][0]["path"]).read_bytes()


@pytest.mark.slow
def test_a_connection_cut_while_sending_goes_on_where_it_was(device, plan, tmp_path):
    big = tmp_path / "weights.bin"
    big.write_bytes(np.random.default_rng(0).bytes(64 << 20))
    plan["models"][0]["parts"] += [str(big)]
    events, seen = [], {}

    def cut_in_the_middle():
        def arriving():
            with contextlib.suppress(OSError):
                sizes = [p.stat().st_size for p in device.home.rglob("runs/*/arriving")]
                return any(1 << 20 < size < 64 << 20 for size in sizes)

        wait_until(arriving)
        device.cut()
        seen.update({p: p.stat().st_ino for p in device.home.rglob("files/*/*")})

    def tell(event):
        events.append(event)
        if "connecting again" in event.get("message", ""):
            wait_until(lambda: not left_over(device))
            device.mend()

    thread = threading.Thread(target=cut_in_the_middle)
    thread.start()
    try:
        measure(target({"silence": 4, "connect": 5}), plan, tmp_path, tell)
    finally:
        thread.join()
        device.mend()
    found = messages(events)
    assert [text.split()[0] for text in found] == ["sending", "board:", "sending"]
    # What had arrived by then is not among what was sent again.
    assert any(path.name == "student.onnx" for path in seen)
    assert {path: path.stat().st_ino for path in seen} == seen
    (arrived,) = device.home.rglob("weights.bin")
    assert (
        hashlib.sha256(arrived.read_bytes()).digest() == hashlib.sha256(big.read_bytes()).digest()
    )
    arrived.unlink()
    assert not left_over(device)


@pytest.mark.slow
def test_a_connection_cut_while_measuring_ends_that_and_begins_it_again(device, plan, tmp_path):
    events, cuts = [], []

    def tell(event):
        events.append(event)
        if "message" not in event and not cuts:
            cuts.append(device.processes())
            device.cut()
        if "connecting again" in event.get("message", ""):
            # The device must find out by itself that nobody listens; it comes back a little later.
            wait_until(lambda: not left_over(device))
            threading.Timer(1.5, device.mend).start()

    plan |= {"interval": 0, "max_seconds": 1}
    try:
        samples = measure(target({"silence": 4, "connect": 5}), plan, tmp_path, tell)
    finally:
        device.mend()
    assert cuts[0]
    assert sum("was lost" in text for text in messages(events)) == 1
    assert samples["board/onnxruntime/student/latency"].sum() >= 1
    assert not left_over(device)


def test_a_device_that_loses_every_connection_is_given_up(device, plan, tmp_path):
    events = []

    def tell(event):
        events.append(event)
        if "message" not in event:
            for connection in device.connections():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(connection, signal.SIGKILL)

    with pytest.raises(StageError, match=f"target board: .* was lost.*for the {ATTEMPTS}th time"):
        measure(target(), plan | ENDLESS, tmp_path, tell)
    assert sum("connecting again" in text for text in messages(events)) == ATTEMPTS - 1
    wait_until(lambda: not left_over(device))


def test_ctrl_c_here_ends_the_measuring_there(device, plan, tmp_path):
    def tell(event):
        if "message" not in event:
            assert device.processes()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(target(), plan | ENDLESS, tmp_path, tell)
    wait_until(lambda: not left_over(device))


def test_killed_here_it_ends_there_and_the_next_one_can_measure(device, plan, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(plan | ENDLESS))
    (tmp_path / "target.json").write_text(target().model_dump_json(by_alias=True))
    program = (
        "import json, sys; from pathlib import Path\n"
        "from edgekd.profile.targets import Target\n"
        "from edgekd.profile.transports.ssh import OpenSsh\n"
        "plan, target, out = map(Path, sys.argv[1:])\n"
        "OpenSsh().measure(Target.model_validate_json(target.read_text()),\n"
        "    json.loads(plan.read_text()), out, lambda event: print(event, flush=True))\n"
    )
    arguments = [tmp_path / "plan.json", tmp_path / "target.json", tmp_path]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "message" not in line:
                break
        process.kill()
    wait_until(lambda: not left_over(device))
    assert measure(target({"lock": 1}), plan, tmp_path)


def test_a_killed_device_part_does_not_measure_on_and_its_rest_is_removed(device, plan, tmp_path):
    killed = []

    def tell(event):
        if "message" not in event and not killed:
            killed.extend(device.processes("-I"))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    # The second attempt waits until the first one's measuring has ended, and cleans up after it.
    measure(target(), plan | {"interval": 0, "max_seconds": 2}, tmp_path, tell)
    assert len(killed) == 1
    assert not left_over(device)


def test_who_measures_is_waited_for(device, plan, tmp_path):
    events = []
    with device.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("alice@laptop \x1b[2J")
        lock.flush()

        def tell(event):
            events.append(event)
            if "waiting" in event.get("message", ""):
                fcntl.flock(lock, fcntl.LOCK_UN)

        measure(target(), plan, tmp_path, tell)
    assert messages(events)[0] == "waiting for the device: alice@laptop  [2J is measuring"


def test_two_never_measure_at_once_and_the_holder_is_named(device, plan, tmp_path):
    refusals = []

    def tell(event):
        if "message" not in event:
            with pytest.raises(StageError) as refused:
                measure(target({"lock": 1}), plan, tmp_path)
            refusals.append(str(refused.value))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(target(), plan | ENDLESS, tmp_path, tell)
    me = f"@{os.uname().nodename} (process"
    assert "target board: the device is busy: " in refusals[0]
    assert me in refusals[0]
    # The one who was refused has removed nothing of the one who measures.
    wait_until(lambda: not left_over(device))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"known_hosts": ""},
            "the host key of device is not known\n.*run `ssh -F .*config device`",
        ),
        ({"known_hosts": "other_key"}, "another host key than before"),
        ({"authorized_keys": ""}, "does not accept any of your keys: .*denied"),
    ],
)
def test_a_key_that_is_refused_says_what_to_do(device, files, message):
    kept = {name: (device.folder / name).read_text() for name in ("known_hosts", "authorized_keys")}
    try:
        for name, content in files.items():
            (device.folder / name).write_text("")
            if content:
                device.trust(content)
        with pytest.raises(StageError, match=f"target board: .*(?s:{message})"):
            OpenSsh().describe(target())
    finally:
        for name, text in kept.items():
            (device.folder / name).write_text(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "/nowhere/python3"}, "device has no /nowhere/python3"),
        ({"python": "/etc/passwd"}, "/etc/passwd cannot be run on device: .*denied"),
        ({"python": "/bin/true"}, "/bin/true cannot be run on device: .*code 0"),
        (
            {"port": 1, "timeouts": {"connect": 2}},
            r"cannot be reached: .*\n.*ssh -F .* -p 1 device`",
        ),
        ({"host": "no-such-host.invalid"}, "cannot be reached: .*resolve"),
        ({"identity": "/nowhere/key", "user": "nobody"}, "does not accept any of your keys"),
        ({"folder": "/proc/edgekd"}, "/proc/edgekd on the device: .*\n.*another ssh.folder"),
        ({"folder": "/etc/passwd"}, "/etc/passwd on the device: File exists"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(device, changes, message):
    with pytest.raises(StageError, match=f"target board: (?s:.*{message})"):
        OpenSsh().describe(target(**changes))


def test_a_device_that_hangs_is_not_waited_for(device):
    script = device.home / "hang"
    script.write_text("#!/bin/sh\nexec sleep 300\n")
    script.chmod(0o755)
    with pytest.raises(StageError, match="device cannot be reached: no answer in time"):
        OpenSsh().describe(target({"connect": 3, "silence": 1}, python="~/hang"))
    for process in device.processes("300"):
        os.kill(process, signal.SIGKILL)


def test_another_architecture_is_refused_before_anything_is_sent(device, plan, tmp_path):
    other = target(arch="m68k", folder="~/never")
    with pytest.raises(StageError, match=r"architecture is \w+, the target's is m68k\n.*probe"):
        measure(other, plan, tmp_path)
    assert not (device.home / "never/files").exists()
    assert statuses(other)["architecture"] == "missing"
    assert probed(other).arch == os.uname().machine


def test_a_missing_runtime_says_how_to_install_it(device, plan, tmp_path):
    with pytest.raises(StageError, match=r"No module named 'numpy'(?s:.*)pip install numpy==\d"):
        measure(target(python=SYSTEM_PYTHON), plan, tmp_path)
    wait_until(lambda: not left_over(device))


def test_a_model_that_cannot_be_measured_is_the_devices_word_and_is_not_tried_again(
    device, plan, tmp_path
):
    events = []
    plan["models"][0]["precision"] = "bf16"
    with pytest.raises(StageError, match=r"measuring failed: board.* not in bf16"):
        measure(target(), plan, tmp_path, events.append)
    assert not any("again" in text for text in messages(events))
    wait_until(lambda: not left_over(device))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=300k", r"full: \d+ bytes are to be sent .*\n.*rm -r "),
        ("size=20m,nr_inodes=9", r"the device's disk is full\n.*rm -r "),
        ("size=4k", "No space left"),
    ],
)
def test_a_full_disk_is_said_and_what_did_not_fit_is_removed(
    device, plan, tmp_path, options, message
):
    big = tmp_path / "weights.bin"
    big.write_bytes(bytes(1 << 20))
    plan["models"][0]["parts"] += [str(big)]
    folder = device.home / hashlib.sha256(options.encode()).hexdigest()[:8]
    inside = device.mount(folder, options)
    with pytest.raises(StageError, match=f"(?s:{message})"):
        measure(target(folder=str(folder)), plan, tmp_path)
    wait_until(lambda: not device.processes())
    unfinished = [str(folder / "runs/*"), str(folder / "*.tmp")]
    # By the device itself, which may take its time when it is busy.
    wait_until(
        lambda: (
            not inside("find", str(folder), "-path", unfinished[0], "-o", "-path", unfinished[1])
        )
    )


def test_without_ssh_here_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no `ssh` on this machine\n.*install"):
        OpenSsh().describe(target())


def test_names_that_a_shell_would_obey_are_names(device, plan, tmp_path):
    folder = """~/a b;touch pwned;$(touch pwned)`touch pwned`'"\\&|>pwned #*?!~"""
    link = device.home / "py thon;touch pwned;$(touch pwned)'\"\\"
    link.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    assert measure(target(folder=folder, python=f"~/{link.name}"), plan, tmp_path)
    assert (device.home / folder.removeprefix("~/") / "files").is_dir()
    assert not list(device.home.rglob("pwned"))
    assert not Path("pwned").exists()


def test_a_shell_that_greets_everybody_and_a_jump_host_are_no_obstacle(device):
    greeting = device.home / ".bashrc"
    greeting.write_text("echo Welcome; echo 3; echo '[1]'\n")
    try:
        described = OpenSsh().describe(target(host="far"))
    finally:
        greeting.unlink()
    assert described["packages"]["onnxruntime"]["version"]


@pytest.mark.parametrize(
    "program",
    [
        "yes",
        "yes '{'",
        "head -c 20000000 /dev/zero",
        'printf \'{"done": "x"}\\n\'; yes \'{"done": {"bytes": 9}}\'',
        "printf '{\"done\": \"x\"}\\n'; yes '[[['",
        'printf \'{"done": "x"}\\n{"error": "\\\\u001b[2J", "fix": ["x"]}\\n\'; cat > /dev/null',
        'printf \'{"ready": 1}\\n{"done": "x"}\\n\'; yes \'{"bytes": 1e99}\'',
        'printf \'{"done": "x"}\\n\'; yes \'{"done": []}\'',
        'printf \'{"done": "x"}\\n\'; yes \'{"message": "x"}\'',
        "yes words >&2 & sleep 0.5; kill $!; exit 1",
    ],
)
def test_a_hostile_device_is_an_error_and_does_no_harm(device, plan, tmp_path, program):
    script = device.home / "hostile"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    with pytest.raises(StageError) as caught:
        measure(target(python="~/hostile"), plan, tmp_path)
    assert len(str(caught.value)) < 2000
    assert "\x1b" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def statuses(target):
    return {finding.name: finding.status for finding in check(target)}


@pytest.mark.slow
def test_a_gate_measures_both_files_there(device, exported):
    files = [[exported.folder / f"{role}.onnx"] for role in ("teacher", "student")]
    source = launches(*files, "onnxruntime", target(), exported.inputs, 1)
    # The teacher takes longer: log(candidate / baseline) > 0, whichever is sent first.
    assert next(source).latency > 0
    assert next(source).latency > 0


def test_results_of_a_device_do_not_depend_on_the_machine_that_asks(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/board.yaml").write_text(as_yaml(target()))
    for names, here in (["board"], False), (["local"], True), (["board", "local"], True):
        config = Config(profile=Profile(targets=names))
        part = dict(next(stage for stage in LINE if stage.name == "profile").part(config, tmp_path))
        assert (os.uname().nodename in (part["machine"] or [])) == here


class TestCheckAndProbe:
    def test_a_device_that_has_everything_is_ok(self, device):
        found = statuses(target(arch=os.uname().machine, runtimes=("onnxruntime", "openvino")))
        assert {"reachable", "python", "numpy", "onnxruntime", "openvino", "disk"} <= set(found)
        assert found["architecture"] == "ok"
        assert set(found.values()) <= {"ok", "hint"}

    def test_what_is_missing_is_said_with_its_remedy(self, device):
        found = {f.name: f for f in check(target(python=SYSTEM_PYTHON))}
        assert (found["numpy"].status, found["onnxruntime"].status) == ("missing", "missing")
        assert found["numpy"].fix == "/usr/bin/python3 -m pip install numpy"

    def test_another_machine_than_described_is_said(self, device):
        other = target().model_copy(update={"cores": 4095, "memory": "1 GiB", "threads": 1024})
        found = {f.name: f for f in check(other)}
        assert found["cores"].status == found["memory"].status == "missing"
        assert "4095" in found["cores"].fix
        assert found["threads"].status == "hint"

    def test_one_that_cannot_be_reached_is_a_finding(self, device):
        (finding,) = check(target(port=1))
        assert (finding.name, finding.status) == ("reachable", "missing")

    def test_an_environment_to_be_made_is_nothing_that_lacks(self, device):
        assert statuses(target(python=None))["onnxruntime"] == "ok"
        assert probed(target(python=None)).runtimes == ["onnxruntime"]

    def test_this_machine_can_be_asked_too(self):
        here = Target.model_validate({"name": "here", "class": "cpu"})
        assert statuses(here)["onnxruntime"] == "ok"
        assert probed(here).arch == os.uname().machine

    def test_the_commands_write_a_descriptor_once_and_check_it(self, device, tmp_path):
        def edgekd(*arguments):
            command = [sys.executable, "-m", "edgekd", "targets", *arguments]
            return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

        made = edgekd("probe", "device", "-o", "targets/mine.yaml")
        assert made.returncode == 0, made.stderr
        written = TARGETS.read(tmp_path / "targets/mine.yaml")
        assert (written.ssh.host, written.arch) == ("device", os.uname().machine)
        again = edgekd("probe", "device", "-o", "targets/mine.yaml")
        assert again.returncode == 2
        assert "exists already\n  --force" in again.stderr
        checked = edgekd("check", "mine", "--json")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert {f["name"] for f in json.loads(checked.stdout)} >= {"disk", "cores", "memory"}
        unknown = edgekd("probe", "a;touch pwned")
        assert unknown.returncode == 2
        assert "neither a known target nor" in unknown.stderr
        (tmp_path / "targets/mine.yaml").write_text(
            "name: mine\nclass: edge\ntransport: ssh\nssh: {host: device, python: /nowhere}\n"
        )
        lacking = edgekd("check", "mine")
        assert lacking.returncode == 3
        assert "→ install it" in lacking.stdout

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("pi", (None, "pi", None, "pi")),
            ("ci@PI.local:2222", ("ci", "PI.local", 2222, "pi.local")),
            ("10.0.0.7", (None, "10.0.0.7", None, "10.0.0.7")),
            ("[fe80::1%eth0]:22", (None, "fe80::1%eth0", 22, "fe80-1-eth0")),
            ("fe80::1", (None, "fe80::1", None, "fe80-1")),
        ],
    )
    def test_an_address_is_taken_apart(self, address, expected):
        found = target_at(address)
        assert (found.ssh.user, found.ssh.host, found.ssh.port, found.name) == expected


@pytest.mark.slow
class TestEnvironment:
    def test_a_device_with_nothing_but_python_gets_one_once(
        self, device_with_network, plan, tmp_path
    ):
        first, second = [], []
        fresh = target(python=None)
        measure(fresh, plan, tmp_path, first.append)
        assert "making an environment on the device: numpy==" in messages(first)[0]
        assert len(list(device_with_network.home.rglob("venv-*/bin/python"))) == 1
        measure(fresh, plan, tmp_path, second.append)
        assert messages(second) == []
        assert {f.name: f.text for f in check(fresh)}["numpy"] == np.__version__
        assert not left_over(device_with_network)

    def test_one_that_cannot_be_made_leaves_nothing(
        self, device_with_network, plan, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(ssh, "_requirements", lambda target: ["numpy==0.0.1"])
        with pytest.raises(StageError, match=r"no environment could be made.*numpy==0\.0\.1"):
            measure(target(python=None), plan, tmp_path)
        wait_until(lambda: not left_over(device_with_network))
        assert not list(device_with_network.home.rglob("venv-*"))

    def test_one_that_takes_too_long_leaves_nothing(self, device_with_network, plan, tmp_path):
        with pytest.raises(StageError, match=r"it took more than 1 s"):
            measure(target({"setup": 1}, python=None), plan, tmp_path)
        wait_until(lambda: not left_over(device_with_network))
        assert not list(device_with_network.home.rglob("venv-*"))
