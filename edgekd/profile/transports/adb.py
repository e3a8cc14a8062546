"""`adb`: an Android device through the system's `adb`, with Python there or a native tool.

The device's shell parses what `adb shell` is given: every word that is not this file's own is quoted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import select
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edgekd.artifacts import read_json, sha256_file
from edgekd.errors import StageError, UsageError
from edgekd.profile.native.measure import Finished
from edgekd.profile.native.measure import measure as measure_natively
from edgekd.profile.native.tool import TOOLS
from edgekd.profile.parcel import content_path, pack, runner, runner_name
from edgekd.profile.received import keep
from edgekd.profile.targets import Adb as Settings
from edgekd.profile.targets import Target
from edgekd.profile.transport import transport

Tell = Callable[[dict[str, Any]], None]
_EMULATOR = "this is the Android emulator"
_SHORT, _SILENCE, _TRANSFER = 30.0, 300.0, 1800.0
_MOST_LINE, _MOST_OUTPUT, _MOST_RESULT = 1 << 16, 16 << 20, 256 << 20

# Runs a command until it ends or its input does: whatever ends this side of the connection
# (Ctrl-C, a crash, a pulled cable) ends the process there too. {poll} may watch its memory.
_WATCHED = """\
exec 3<&0
cd {folder} || exit 1
({command}) 3<&- </dev/null & job=$!
(while read -r line; do :; done; kill $job) <&3 >/dev/null 2>&1 & watch=$!
peak=0
{poll}
wait $job; code=$?
kill $watch 2>/dev/null
echo; echo {end} $code $peak"""
_POLL = """\
while now=$(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB$/\\1/p' /proc/$job/status 2>/dev/null) && [ "$now" ]
do peak=$now; sleep 0.02; done"""
# Holds the device for one job; a lock whose process is gone was left by a crash.
_LOCK = """\
mkdir -p {folder} && cd {folder} || exit 1
if ! mkdir lock 2>/dev/null && kill -0 "$(cat lock/pid)" 2>/dev/null; then echo busy; exit; fi
echo $$ >lock/pid || exit 1
rm -rf job-*
echo locked
while read -r line; do :; done
rm -rf lock"""


@transport("adb")
class Adb:
    """Files are sent once, under names made from their content; one job at a time on a device."""

    def measure(self, target: Target, plan: dict[str, Any], folder: Path, tell: Tell) -> None:
        """Run the plan as the descriptor says.

        Raises UsageError when the device cannot be chosen, StageError when it fails.
        """
        settings = target.adb
        assert settings is not None
        try:
            device = _Device(find_device(settings.serial), settings.folder)
            with device.locked(), device.job() as job:
                if settings.runner is None:
                    _with_python(device, settings, plan, folder, job, tell)
                else:
                    _with_tool(device, settings, plan, folder, job, tell)
            result, samples = (folder / "result.json", folder / "samples.npz")
            keep(plan, result.read_bytes(), samples.read_bytes(), folder, where="")
        except (UsageError, StageError) as error:
            where = f"target {target.name}" + (f": {error.where}" if error.where else "")
            raise type(error)(error.what, where=where, fix=error.fix) from None


def find_device(serial: str | None) -> str:
    """The serial number of the device to use. Raises UsageError when there is none, or no one."""
    states = _devices()
    serial = serial or os.environ.get("ANDROID_SERIAL")
    if serial is None:
        if not states:
            raise UsageError(
                "adb sees no device",
                fix="attach it and allow USB debugging, or `adb connect HOST:PORT`",
            )
        if len(states) > 1:
            raise UsageError(
                f"adb sees {len(states)} devices: {', '.join(sorted(states))}",
                fix="name one in the descriptor: adb: {serial: …}",
            )
        [serial] = states
    state = states.get(serial)
    if state is None:
        seen = ", ".join(sorted(states)) or "none"
        raise UsageError(
            f"adb does not see the device {serial!r}; it sees: {seen}",
            fix="attach it, or `adb connect HOST:PORT`",
        )
    advice = {
        "unauthorized": "unlock it and allow USB debugging for this computer's key",
        "authorizing": "unlock it and allow USB debugging for this computer's key",
        "offline": "reconnect it: `adb reconnect offline`",
        "no permissions": "give your user access to the USB device (udev rules)",
    }
    if state != "device":
        raise UsageError(
            f"the device {serial!r} is not ready: {state}",
            fix=next((text for start, text in advice.items() if state.startswith(start)), None),
        )
    return serial


def _devices() -> dict[str, str]:
    """State by serial number."""
    output = _adb(["devices"], seconds=_SHORT)
    lines = (line.split("\t", 1) for line in output.splitlines() if "\t" in line)
    return {serial.strip(): _plain(state) for serial, state in lines}


def _adb(arguments: list[str], *, seconds: float) -> str:
    """Run the client; its output. Raises UsageError without it, StageError when it fails."""
    try:
        done = subprocess.run(
            ["adb", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise UsageError("adb is not installed", fix="apt install adb") from None
    except subprocess.TimeoutExpired:
        raise StageError(f"adb gave no answer for {seconds:.0f} s") from None
    if done.returncode != 0:
        # A push prints its error before its summary, and on standard output.
        lines = (done.stderr + done.stdout).splitlines()
        words = [line for line in lines if "error:" in line] or lines
        raise StageError(f"adb failed: {_last_words(chr(10).join(words))}")
    return done.stdout


class _Device:
    """One device; paths are relative to edgekd's folder there."""

    def __init__(self, serial: str, folder: str) -> None:
        self.serial, self.folder = serial, folder
        self.program = ""

    def shell(self, script: str) -> str:
        """What a short script prints. Raises StageError with its last words when it fails."""
        script = f"cd {shlex.quote(self.folder)} && {{ {script}\n}} 2>&1"
        end = secrets.token_hex(8)
        lines = list(
            self._lines(f"{script}; code=$?; echo; echo {end} $code 0", end, silence=_SHORT)
        )
        code, _ = _ending(lines.pop(), end)
        if code != 0:
            raise StageError(f"the device says: {_last_words(chr(10).join(lines))}")
        return "\n".join(lines)

    def watched(
        self, command: str, *, poll: bool = False, each: Callable[[str], None] | None = None
    ) -> tuple[int, int, str]:
        """Run a long command in the folder: exit code, peak memory in kB if polled, output.

        With `each`, lines go there instead. It ends with us, however we end.
        """
        end = secrets.token_hex(8)
        script = _WATCHED.format(
            folder=shlex.quote(self.folder), command=command, end=end, poll=_POLL if poll else ""
        )
        kept: list[str] = []
        ending = ""
        for line in self._lines(script, end, silence=_SILENCE):
            if line.startswith(end):
                ending = line
            elif each is None:
                kept.append(line)
            else:
                each(line)
        code, peak = _ending(ending, end)
        return code, peak, "\n".join(kept)

    def _lines(self, script: str, end: str, *, silence: float) -> Iterator[str]:
        """Lines as the device prints them, the last one begins with `end`. Raises StageError."""
        with (
            tempfile.TemporaryFile() as log,
            subprocess.Popen(
                ["adb", "-s", self.serial, "shell", script], bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            ) as process,
        ):  # fmt: skip
            try:
                for line in _bounded_lines(process, silence):
                    yield line
                    if line.startswith(end):
                        return
            finally:
                process.kill()
            log.seek(0)
            words = _last_words(log.read(_MOST_LINE).decode(errors="replace"))
        raise StageError(
            f"the connection to the device ended: {words}", where=f"device {self.serial}",
            fix="attach it again and run the same command; what it was sent is kept there",
        )  # fmt: skip

    def send(self, files: dict[str, Path]) -> None:
        """Push what is missing: to a temporary name, checked by its hash, then renamed."""
        missing = self._missing(list(files))
        for path in missing:
            temporary = f"{path}.part"
            self.shell(f"mkdir -p {shlex.quote(str(PurePosixPath(path).parent))}")
            try:
                _adb(
                    ["-s", self.serial, "push", str(files[path].absolute()),
                     f"{self.folder}/{temporary}"],
                    seconds=_TRANSFER,
                )  # fmt: skip
                self._check(temporary, files[path])
            except StageError as error:
                with contextlib.suppress(StageError):
                    self.shell(f"rm -f {shlex.quote(temporary)}")
                full = "no space left" in error.what.lower()
                raise StageError(
                    f"cannot send {files[path].name}: {error.what}",
                    fix="free some space on it, or choose another adb.folder" if full else None,
                ) from None
            self.shell(f"mv -f {shlex.quote(temporary)} {shlex.quote(path)}")

    def _missing(self, paths: list[str]) -> list[str]:
        if not paths:
            return []
        tests = [f"[ -f {shlex.quote(path)} ] || echo {i}" for i, path in enumerate(paths)]
        answers = self.shell("\n".join([*tests, "true"])).split()
        wanted = {str(i): path for i, path in enumerate(paths)}
        return [wanted[answer] for answer in answers if answer in wanted]

    def _check(self, path: str, here: Path) -> None:
        """Compare the file there with ours: by SHA-256, or by size where it cannot be had."""
        quoted = shlex.quote(path)
        answer = self.shell(f"sha256sum {quoted} 2>/dev/null || wc -c <{quoted}").split()
        first = answer[0].lstrip("\\") if answer else ""
        if first not in (sha256_file(here), str(here.stat().st_size)):
            raise StageError("it did not arrive whole")

    def place(self, source: str, destination: str) -> None:
        """Copy a file there."""
        parent = shlex.quote(str(PurePosixPath(destination).parent))
        self.shell(f"mkdir -p {parent} && cp {shlex.quote(source)} {shlex.quote(destination)}")

    def take(self, path: str, most: int) -> bytes:
        """Read a file, checked by its hash, and delete it there."""
        quoted = shlex.quote(path)
        answer = self.shell(f"[ -f {quoted} ] && sha256sum {quoted} || wc -c <{quoted}").split()
        said = answer[0].lstrip("\\") if answer else ""
        content = self._cat(path, most)
        if said not in (hashlib.sha256(content).hexdigest(), str(len(content))):
            raise StageError(f"{PurePosixPath(path).name} did not arrive whole")
        self.shell(f"rm -f {quoted}")
        return content

    def _cat(self, path: str, most: int) -> bytes:
        command = [
            "adb",
            "-s",
            self.serial,
            "exec-out",
            f"cat {shlex.quote(f'{self.folder}/{path}')}",
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0,
        ) as process:  # fmt: skip
            try:
                content = bytearray()
                for chunk in _chunks(process, _SHORT):
                    content += chunk
                    if len(content) > most:
                        raise StageError(
                            f"{PurePosixPath(path).name} from the device is larger than {most} bytes"
                        )
            finally:
                process.kill()
        return bytes(content)

    def run(self, arguments: list[str], *, peak: bool = False) -> Finished:
        """The native tool, its libraries beside it."""
        libraries = shlex.quote(str(PurePosixPath(self.program).parent))
        command = f"export LD_LIBRARY_PATH={libraries}; exec {shlex.join([self.program, *arguments])} 2>&1"
        code, kilobytes, printed = self.watched(command, poll=peak)
        if code != 0:
            name = PurePosixPath(self.program).name
            raise StageError(f"{name} failed with exit code {code}: {_last_words(printed)}")
        return Finished(printed, kilobytes * 1024 if kilobytes else None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the device for one job. Raises StageError when another one has it."""
        with subprocess.Popen(
            ["adb", "-s", self.serial, "shell", _LOCK.format(folder=shlex.quote(self.folder))],
            bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                words = []
                for line in _bounded_lines(process, _SHORT):
                    words.append(line)
                    if line == "locked":
                        break
                    if line == "busy":
                        raise StageError(
                            "another job is measuring on this device",
                            fix=f"wait for it, or delete {self.folder}/lock there if there is none",
                        )
                else:
                    raise StageError(f"the device says: {_last_words(chr(10).join(words))}")
                yield
            finally:
                assert process.stdin is not None
                process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()

    @contextlib.contextmanager
    def job(self) -> Iterator[str]:
        """A folder for one job there, deleted at the end."""
        name = f"job-{secrets.token_hex(8)}"
        self.shell(f"mkdir {name}")
        try:
            yield name
        finally:
            # The next job cleans up after one whose device has gone.
            with contextlib.suppress(StageError):
                self.shell(f"rm -rf {name}")


def _with_python(
    device: _Device, settings: Settings, plan: dict[str, Any], folder: Path, job: str, tell: Tell
) -> None:
    """The same device part as everywhere else, as a zipapp."""
    assert settings.python is not None
    parcel = pack(plan)
    _check_python(device, settings.python, {model["runtime"] for model in plan["models"]})
    with tempfile.TemporaryDirectory(prefix="edgekd-adb-") as name:
        here = Path(name)
        (here / runner_name()).write_bytes(runner())
        (here / "plan.json").write_text(json.dumps(parcel.plan))
        device.send({**parcel.files, runner_name(): here / runner_name(),
                     f"{job}/plan.json": here / "plan.json"})  # fmt: skip
    reason = ""

    def each(line: str) -> None:
        nonlocal reason
        event = _event(line)
        if "error" in event:
            reason = _plain(str(event["error"]))
        elif event:
            tell(event)

    arguments = [settings.python, runner_name(), "measure", f"{job}/plan.json", job]
    command = f"export TMPDIR=$PWD/{job}; exec {shlex.join(arguments)} 2>{job}/log"
    code, _, _ = device.watched(command, each=each)
    if code != 0:
        log = device.shell(f"tail -c 2000 {job}/log")
        raise StageError(f"measuring failed on the device: {reason or _last_words(log)}")
    for result in ("result.json", "samples.npz"):
        (folder / result).write_bytes(device.take(f"{job}/{result}", _MOST_RESULT))
    if device.shell("getprop ro.boot.qemu 2>/dev/null || true").strip() == "1":
        _label_emulated(folder / "result.json")


def _check_python(device: _Device, python: str, modules: set[str]) -> None:
    """Say what is missing before anything is sent."""
    names = " ".join(sorted({"numpy", *modules}))
    code = (
        "import importlib.util as u, sys\n"
        "print('missing:', *(m for m in sys.argv[1:] if u.find_spec(m) is None))"
    )
    try:
        answer = device.shell(f"{shlex.quote(python)} -c {shlex.quote(code)} {names}")
    except StageError as error:
        raise StageError(
            f"adb.python cannot be run: {error.what}",
            fix="give the path of a Python 3 that adb's shell user may execute, or use adb.runner",
        ) from None
    missing = answer.strip().splitlines()[-1].partition("missing:")[2].split()
    if missing:
        raise StageError(
            f"the device's Python has no {', '.join(missing)}",
            fix=f"install it there: {python} -m pip install {' '.join(missing)}",
        )


def _label_emulated(path: Path) -> None:
    result = read_json(path)
    if isinstance(result, dict) and isinstance(result.get("environment"), dict):
        result["environment"]["emulated"] = _EMULATOR
        path.write_text(json.dumps(result))


def _with_tool(
    device: _Device, settings: Settings, plan: dict[str, Any], folder: Path, job: str, tell: Tell
) -> None:
    assert settings.runner is not None
    if settings.runner_path is not None:
        device.program = settings.runner_path
    else:
        files = [Path(name).expanduser() for name in settings.runner_files]
        for file in files:
            if not file.is_file():
                raise UsageError(f"adb.runner_files: no file {file}")
        paths = content_path(files)
        device.send(dict(zip(paths, files, strict=True)))
        device.shell(f"chmod 755 {shlex.quote(paths[0])}")
        device.program = f"{device.folder}/{paths[0]}"
    tool = TOOLS.get(settings.runner)()
    measure_natively(device, tool, plan, folder, job, _describe(device), tell)


def _describe(device: _Device) -> dict[str, Any]:
    """What the device says of itself; what it does not say is left out."""
    questions = {
        "cpu_model": "getprop ro.soc.model",
        "device_model": "getprop ro.product.model",
        "distribution": "getprop ro.build.fingerprint",
        "architecture": "uname -m",
        "system": "uname -sr",
        "cores": "nproc",
        "governor": "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "load_average": "cat /proc/loadavg",
        "emulated": "getprop ro.boot.qemu",
    }
    script = "\n".join(
        f'echo "{name}=$({command} 2>/dev/null | head -n 1 | cut -c 1-200)"'
        for name, command in questions.items()
    )
    found = dict(line.split("=", 1) for line in device.shell(script).splitlines() if "=" in line)
    answers = {name: _plain(found[name]) for name in questions if found.get(name, "").strip()}
    found_out: dict[str, Any] = {n: int(a) if a.isdigit() else a for n, a in answers.items()}
    if answers.get("emulated") == "1":
        found_out["emulated"] = _EMULATOR
    return found_out


def _event(line: str) -> dict[str, Any]:
    """A progress event, an error, or {} for what is neither."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(event, dict):
        return {}
    if "error" in event:
        return {"error": event["error"]}
    models, spent, width = event.get("models"), event.get("spent"), event.get("width")
    well_formed = (
        event.get("phase") in ("latency", "throughput")
        and isinstance(models, list) and models
        and all(isinstance(name, str) and name.count("/") >= 1 for name in models)
        and isinstance(spent, int | float)
        and (width is None or isinstance(width, int | float))
    )  # fmt: skip
    return event if well_formed else {}


def _bounded_lines(process: subprocess.Popen[bytes], silence: float) -> Iterator[str]:
    """Lines of bounded length and amount. Raises StageError, also after `silence` seconds of it."""
    rest = b""
    total = 0
    for chunk in _chunks(process, silence):
        total += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if total > _MOST_OUTPUT or len(rest) > _MOST_LINE:
            raise StageError("the device printed more than edgekd reads")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace").rstrip("\r")


def _chunks(process: subprocess.Popen[bytes], silence: float) -> Iterator[bytes]:
    assert process.stdout is not None
    while True:
        ready, _, _ = select.select([process.stdout], [], [], silence)
        if not ready:
            raise StageError(f"the device was silent for {silence:.0f} s")
        chunk = process.stdout.read(1 << 16)
        if not chunk:
            return
        yield chunk


def _ending(line: str, end: str) -> tuple[int, int]:
    """Exit code and peak memory from the last line of a script."""
    match = re.fullmatch(rf"{end} (\d{{1,3}}) (\d{{1,12}})", line)
    if match is None:
        raise StageError(f"the device's shell ended with {_plain(line)!r}")
    return int(match[1]), int(match[2])


def _last_words(text: str) -> str:
    """The last line that says anything, as plain text."""
    lines = [line for line in map(_plain, text.splitlines()) if line]
    return lines[-1] if lines else "it gives no reason"


def _plain(text: str) -> str:
    """Without control characters, and short: it may go to a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:300].strip()
