"""`ssh`: the device part over one connection of the system's OpenSSH, as the user has configured it."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekd.artifacts import sha256_file
from edgekd.config.units import format_quantity
from edgekd.errors import StageError, UsageError
from edgekd.profile.parcel import Parcel, pack, runner, runner_name
from edgekd.profile.received import MAX_RESULT, MAX_SAMPLES, keep, printable
from edgekd.profile.targets import Ssh, Target
from edgekd.profile.transport import transport

# A measurement that was cut off is begun again; so often in all, the first time included.
ATTEMPTS = 4
_MAX_LINE = 8 << 20
# Each device part is sent once. This runs in any python3 and ends up in device/session.py.
_RECEIVER = """
import hashlib, json, os, runpy, sys
folder, name, size, digest, silence = sys.argv[1:]
def say(**answer):
    print(json.dumps(answer), flush=True)
try:
    if sys.version_info < (3, 10):
        say(error="the device has Python %d.%d; 3.10 or newer is needed" % sys.version_info[:2],
            fix="install one there and name it as ssh.python")
        sys.exit()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    runner = os.path.join(os.path.abspath(folder), name)
    def whole(data):
        return hashlib.sha256(data).hexdigest() == digest
    if not (os.path.exists(runner) and whole(open(runner, "rb").read())):
        say(ready=True)
        data = sys.stdin.buffer.read(int(size))
        if not whole(data):
            sys.exit(1)
        fresh = "%s.%d.tmp" % (runner, os.getpid())
        try:
            with open(fresh, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, runner)
        finally:
            if os.path.exists(fresh):
                os.unlink(fresh)
except OSError as error:
    say(error="%s on the device: %s" % (folder, error.strerror),
        fix="make room there, or name another ssh.folder")
    sys.exit()
say(done=os.uname().machine)
sys.argv = [runner, "session", folder, silence]
runpy.run_path(runner, run_name="__main__")
"""
_RECEIVE = "import json, sys; exec(json.loads(sys.stdin.buffer.readline()))"


Tell = Callable[[dict[str, Any]], None]


def _ignore(event: dict[str, Any]) -> None:
    """For what nobody waits for."""


class _Unreachable(StageError):
    """There is no connection; later there may be."""


class _Cut(StageError):
    """There was a connection."""


@transport("ssh")
class OpenSsh:
    """Hosts, keys, agents and jump hosts are those of the user's `ssh`; host keys are always checked.

    The environment variable EDGEKD_SSH_CONFIG names another configuration file than ~/.ssh/config.
    """

    def measure(
        self,
        target: Target,
        plan: dict[str, Any],
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Send what the device does not have, measure there, and fetch the results.

        After a cut connection what has arrived stays, and the measurement is begun again.
        """
        where = f"target {target.name}"
        parcel = pack(plan)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _session(target, again=attempt > 1) as device:
                    result, samples = _measured(device, target, parcel, tell)
                break
            except _Cut as cut:
                if attempt == ATTEMPTS:
                    raise StageError(
                        f"{cut.what}, for the {ATTEMPTS}th time", where=where,
                        fix="run the same command again; what has arrived is not sent again",
                    ) from None  # fmt: skip
                tell({"message": f"{target.name}: {cut.what}; connecting again"})
        keep(plan, result, samples, folder, where=where)

    def describe(self, target: Target) -> dict[str, Any]:
        """What the device says of itself; somebody else may be measuring there."""
        with _session(target) as device:
            requirements = None if device.settings.python else _requirements(target)
            description = device.ask("describe", requirements=requirements)
        if not isinstance(description, dict):
            raise StageError("the device's answer makes no sense", where=f"target {target.name}")
        return description


def _measured(device: _Session, target: Target, parcel: Parcel, tell: Tell) -> tuple[bytes, bytes]:
    """`result.json` and `samples.npz` as they came."""
    if target.arch not in (None, device.machine):
        raise StageError(
            f"the device's architecture is {device.machine}, the target's is {target.arch}",
            where=f"target {target.name}",
            fix="`edgekd targets probe` writes a descriptor that fits",
        )
    timeouts, python = device.settings.timeouts, None
    device.ask("lock", tell, who=_me(), seconds=timeouts.lock)
    if device.settings.python is None:
        requirements = _requirements(target)
        python = device.ask("environment", tell, requirements=requirements, seconds=timeouts.setup)
    here = {path: (file.stat().st_size, sha256_file(file)) for path, file in parcel.files.items()}
    said = device.ask("missing", files=here)
    missing = [path for path in here if path in said] if isinstance(said, list) else list(here)
    if missing:
        size = format_quantity(sum(here[path][0] for path in missing), "bytes")
        tell({"message": f"sending {len(missing)} files ({size}) to {target.name}"})
    for path in missing:
        device.store(path, parcel.files[path], *here[path])
    ids = {model["id"] for model in parcel.plan["models"]}

    def progress(said: dict[str, Any]) -> None:
        if "message" in said:
            tell(said)
        elif _is_progress(said["event"], ids):
            tell(said["event"])

    try:
        device.ask("measure", progress, plan=parcel.plan, python=python)
    except StageError as error:
        if "No module named" in error.what:
            interpreter = shlex.quote(device.settings.python or "python3")
            packages = " ".join(_requirements(target))
            error.fix = (
                f"on the device: {interpreter} -m pip install {packages}; or leave ssh.python out, "
                "and edgekd makes an environment there"
            )
        raise
    return device.fetch("result.json", MAX_RESULT), device.fetch("samples.npz", MAX_SAMPLES)


def _requirements(target: Target) -> list[str]:
    """What the device needs, in the versions of this machine."""
    return [
        f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        for name in ("numpy", *target.runtimes)
    ]


def _me() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


@contextlib.contextmanager
def _session(target: Target, *, again: bool = False) -> Iterator[_Session]:
    """A visit of the device. With `again` one that is unreachable is waited for."""
    session = _connected(target, again=again)
    try:
        yield session
        session.end()
    finally:
        session.kill()


def _connected(target: Target, *, again: bool) -> _Session:
    assert target.ssh is not None
    deadline = time.monotonic() + target.ssh.timeouts.reconnect
    while True:
        session = _Session(target.ssh, where=f"target {target.name}")
        try:
            session.begin()
            return session
        except _Unreachable:
            session.kill()
            if not again or time.monotonic() > deadline:
                raise
            time.sleep(1)
        except BaseException:
            session.kill()
            raise


class _Session:
    """The near end of device/session.py; `machine` is the device's architecture."""

    def __init__(self, settings: Ssh, *, where: str) -> None:
        self.settings, self._where, self._begun = settings, where, False
        self.machine, self._messages = "", 0
        try:
            self._process = subprocess.Popen(
                _command(settings),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise UsageError(
                "there is no `ssh` on this machine", where=where, fix="install the OpenSSH client"
            ) from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._words: deque[bytes] = deque(maxlen=30)
        self._listener = threading.Thread(target=self._keep_words, daemon=True)
        self._listener.start()

    def begin(self) -> None:
        """Bring the device part into being there. Raises StageError, _Unreachable if that may pass."""
        timeouts = self.settings.timeouts
        timer = threading.Timer(timeouts.connect + timeouts.silence, self._stop)
        timer.start()
        try:
            self._write(json.dumps(_RECEIVER).encode() + b"\n")
            answer = self._greeting()
            if "ready" in answer:
                self._write(runner())
                answer = self._answer()
        finally:
            timer.cancel()
        self.machine = printable(str(answer.get("done")), 40)
        self._begun = True
        threading.Thread(target=self._live, daemon=True).start()

    def ask(self, do: str, tell: Tell = _ignore, **arguments: Any) -> Any:
        """The device's answer to a request; what it says before goes to `tell`."""
        with self._writing:
            self._write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return self._answer(tell).get("done")

    def store(self, path: str, source: Path, size: int, digest: str) -> None:
        """Send a file."""
        request = {"do": "store", "path": path, "size": size, "sha256": digest}
        # No sign of life may get among its bytes.
        with self._writing, source.open("rb") as file:
            self._write(json.dumps(request).encode() + b"\n")
            self._answer()
            while data := file.read(min(size, 1 << 18)):
                self._write(data)
                size -= len(data)
        if size:
            raise StageError("changed while it was sent", where=str(source))
        self._answer()

    def fetch(self, name: str, limit: int) -> bytes:
        """A file of the results."""
        with self._writing:
            self._write(json.dumps({"do": "fetch", "name": name}).encode() + b"\n")
        size = self._answer().get("bytes")
        if not isinstance(size, int) or not 0 <= size <= limit:
            raise StageError(f"the device's {name} is too large: {size} bytes", where=self._where)
        data = self._stdout.read(size)
        if len(data) < size:
            raise self._lost()
        self._answer()
        return data

    def end(self) -> None:
        """Let the device tidy up; the end of its input is the end of the visit."""
        self._ended.set()
        if self._writing.acquire(timeout=2):
            self._stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def kill(self) -> None:
        """End the connection; the device tidies up when it notices."""
        self._ended.set()
        self._stop()
        self._listener.join(1)
        # It closes the pipes, of which the other ends are gone.
        with self._process:
            pass

    def _stop(self) -> None:
        """End ssh, and the one that it may have started to a jump host, however they hang."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def _live(self) -> None:
        """The device gives up who is silent."""
        while not self._ended.wait(self.settings.timeouts.silence / 4):
            # One that ends meanwhile has nobody to live for: its pipe may be closed already.
            with self._writing, contextlib.suppress(OSError, ValueError):
                if not self._ended.is_set():
                    self._write(b"\n")

    def _write(self, data: bytes) -> None:
        # What broke the pipe is in the answer, or in there being none.
        with contextlib.suppress(BrokenPipeError):
            view = memoryview(data)
            while view:
                view = view[os.write(self._stdin.fileno(), view) :]

    def _greeting(self) -> dict[str, Any]:
        """The first answer, after whatever the device's shell says to everybody."""
        for _ in range(1000):
            line = self._line()
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return self._checked(answer)
        raise StageError("the device says too much before it begins", where=self._where)

    def _answer(self, tell: Tell = _ignore) -> dict[str, Any]:
        """The next answer that is not for `tell`. Raises the device's error as StageError."""
        while True:
            try:
                answer = json.loads(self._line())
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict):
                raise self._nonsense()
            if "message" in answer:
                self._messages += 1
                if self._messages > 1000:
                    raise self._nonsense()
                tell({"message": printable(str(answer["message"]))})
            elif "event" in answer:
                tell({"event": answer["event"]})
            else:
                return self._checked(answer)

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" not in answer:
            return answer
        fix = answer.get("fix")
        raise StageError(
            printable(str(answer["error"])), where=self._where,
            fix=None if fix is None else printable(str(fix)),
        )  # fmt: skip

    def _line(self) -> bytes:
        line = self._stdout.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise self._nonsense() if len(line) == _MAX_LINE else self._lost()
        return line

    def _nonsense(self) -> StageError:
        return StageError("the device's answers make no sense", where=self._where)

    def _keep_words(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(4096):
            self._words.append(line)

    def _lost(self) -> StageError:
        """Why there is no answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._stop()
        code = self._process.wait()
        self._listener.join(2)
        lines = [printable(line.decode(errors="replace").strip()) for line in self._words]
        lines = [line for line in lines if line]
        if not self._begun:
            return _refusal(self.settings, code, lines, self._where)
        last = lines[-1] if lines else ""
        if code == 255:
            reason = f" ({last})" if last else ""
            return _Cut(
                f"the connection to {self.settings.host} was lost{reason}", where=self._where
            )
        return StageError(
            f"the device part ended with exit code {code}: {last or 'no reason given'}",
            where=self._where,
        )


def _command(settings: Ssh) -> list[str]:
    """Connect without questions, as a connection of its own, and receive the device part."""
    timeouts = settings.timeouts
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": f"{timeouts.connect:.0f}",
        # Three answers that do not come are `silence`.
        "ServerAliveInterval": f"{max(1, timeouts.silence // 3):.0f}",
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "LogLevel": "INFO",
    }
    digest = hashlib.sha256(runner()).hexdigest()
    python = _quoted(settings.python) if settings.python else "python3"
    arguments = [runner_name(), str(len(runner())), digest, f"{timeouts.silence:g}"]
    remote = f"exec {python} -I -c {shlex.quote(_RECEIVE)} {_quoted(settings.folder)} "
    return [
        *_ssh(settings), *(f"-o{key}={value}" for key, value in options.items()),
        "--", settings.host, remote + shlex.join(arguments),
    ]  # fmt: skip


def _ssh(settings: Ssh) -> list[str]:
    """What reaches the device, but for its name."""
    words = ["ssh"]
    if config := os.environ.get("EDGEKD_SSH_CONFIG"):
        words += ["-F", config]
    if settings.port is not None:
        words += ["-p", str(settings.port)]
    if settings.user is not None:
        words += ["-l", settings.user]
    if settings.identity is not None:
        words += ["-i", str(Path(settings.identity).expanduser()), "-oIdentitiesOnly=yes"]
    return words


def _quoted(path: str) -> str:
    """A path for the device's shell; "~/" is its user's home folder."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _refusal(settings: Ssh, code: int, lines: list[str], where: str) -> StageError:
    """Why the device part could not be started, from what `ssh` and the device's shell say."""
    text, by_hand = " ".join(lines), shlex.join([*_ssh(settings), settings.host])
    last, host = lines[-1] if lines else "no reason given", settings.host
    python = settings.python or "python3"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return StageError(
            f"{host} has another host key than before: it was set up anew, or it is another machine",
            where=where,
            fix="make sure that it is yours, forget the old key (ssh-keygen -R), "
            f"then run `{by_hand}` and accept the new one",
        )
    if "Host key verification failed" in text:
        return StageError(
            f"the host key of {host} is not known", where=where,
            fix=f"run `{by_hand}` once, compare the fingerprint, and accept it",
        )  # fmt: skip
    if "Permission denied" in text and code == 255:
        return StageError(
            f"{host} does not accept any of your keys: {last}", where=where,
            fix=f"`{by_hand}` must work without a password: see ssh-copy-id, ssh-add, ssh.identity",
        )  # fmt: skip
    if code == 127:
        return StageError(
            f"{host} has no {python}: {last}", where=where,
            fix="install it (Debian, Ubuntu: sudo apt install python3 python3-venv), "
            "or name an interpreter there as ssh.python",
        )  # fmt: skip
    if code == 255 or code < 0:
        # Ended by us because of the time, it says nothing.
        return _Unreachable(
            f"{host} cannot be reached: {lines[-1] if lines else 'no answer in time'}",
            where=where, fix=f"see whether `{by_hand}` works",
        )  # fmt: skip
    return StageError(f"{python} cannot be run on {host}: {last} (exit code {code})", where=where)


def _is_progress(event: Any, ids: set[str]) -> bool:
    """Whether it is what the device part says while it measures these models."""
    return (
        isinstance(event, dict)
        and isinstance(event.get("phase"), str)
        and isinstance(event.get("models"), list)
        and bool(event["models"])
        and all(isinstance(name, str) and name in ids for name in event["models"])
        and isinstance(event.get("spent"), int | float)
        and isinstance(event.get("width"), int | float | None)
    )
