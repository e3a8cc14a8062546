"""A visit from another machine: lock, files, environment, measuring; the far end of a transport's pipe.

Requests and answers are JSON objects, one per line, on standard input and output. A request is
answered by any number of {"message": …} and {"event": …}, then by {"done": …}, or by
{"error": …, "fix": …}, which ends the visit. {"bytes": n} is followed by n raw bytes, {"ready": true}
asks for those that were announced. An empty line is a sign of life.

Nothing goes on here without the other side: when its end is closed, or it is silent for too long,
what runs is ended and what is unfinished is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One per device, whoever measures; EDGEKD_LOCK names another, such as one that containers share.
_LOCK = "/tmp/edgekd.lock"
# Seconds between events: encrypting and sending them takes the CPU that is measured.
_EVERY = 0.5


class Refused(Exception):
    """What was asked for cannot be done; `fix` is what the user can do."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


def main(folder: Path, silence: float) -> None:
    """Serve until the other side leaves, or says nothing for `silence` seconds. Never returns.

    `folder` is where everything is kept: `files/`, environments, and `runs/` for what is unfinished.
    """
    _Session(folder.absolute(), silence).serve()


class _Session:
    def __init__(self, folder: Path, silence: float) -> None:
        self.folder, self.silence = folder, silence
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=64)
        self._rest = b""
        # Whether what arrives is for us; while a request is worked on, it is signs of life alone.
        self._listening = True
        self._lock: int | None = None
        self._scratch: Path | None = None
        self._child: subprocess.Popen[str] | None = None
        self._leaving = threading.Lock()

    def serve(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        code = 1
        try:
            self._serve()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            self._leave(code)

    def _serve(self) -> None:
        try:
            while True:
                request = json.loads(self._line())
                self._answer(done=getattr(self, "do_" + request.pop("do"))(**request))
        except Refused as refused:
            self._answer(error=str(refused), fix=refused.fix)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._answer(error="the device's disk is full", fix=self._make_room())

    def do_describe(self, requirements: list[str] | None) -> dict[str, Any]:
        """What this machine is and has; with `requirements`, also how far their environment is."""
        python, venv = sys.executable, None
        if requirements is not None:
            ready = self._environment(requirements) / "bin/python"
            if ready.exists():
                python, venv = str(ready), "ready"
            else:
                venv = "possible" if _can_make_environments() else "impossible"
        output = "".join(self._run([python, _runner(), "describe", str(self.folder)], seconds=300))
        description: dict[str, Any] = json.loads(output)
        return {**description, "venv": venv}

    def do_lock(self, who: str, seconds: float) -> None:
        """Be the only one who measures on this machine, waiting for others up to `seconds`."""
        descriptor = _open_lock()
        started, told = time.monotonic(), None
        while not _locked(descriptor):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "somebody"
            if time.monotonic() - started > seconds:
                raise Refused(f"the device is busy: {holder} is measuring", "try again later")
            if holder != told:
                self._say(message=f"waiting for the device: {holder} is measuring")
                told = holder
            time.sleep(0.2)
        since = time.strftime("%H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who} (process {os.getpid()}, since {since})".encode(), 0)
        self._lock = descriptor
        # Nobody else is here: what lies here was left by a visit that was killed.
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        (self.folder / "runs").mkdir()
        self._scratch = Path(tempfile.mkdtemp(dir=self.folder / "runs"))

    def do_missing(self, files: dict[str, tuple[int, str]]) -> list[str]:
        """Which of `files` (path to size and SHA-256) are not here, or not what they should be."""
        missing = [
            path for path, (size, digest) in files.items() if not self._has(path, size, digest)
        ]
        needed = sum(files[path][0] for path in missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise Refused(
                f"the device's disk is full: {needed} bytes are to be sent to {self.folder}, "
                f"{free} are free",
                self._make_room(),
            )
        return missing

    def do_store(self, path: str, size: int, sha256: str) -> None:
        """Keep the bytes that the other side sends as `path`, if they are what they should be."""
        arriving = self._here() / "arriving"
        digest, left = hashlib.sha256(), size
        with arriving.open("wb") as file:
            self._answer(ready=True)
            while left:
                data = self._some(left)
                left -= len(data)
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise Refused(f"{path} arrived damaged", "run the same command again")
        self._inside(path).parent.mkdir(parents=True, exist_ok=True)
        arriving.replace(self._inside(path))

    def do_environment(self, requirements: list[str], seconds: float) -> str:
        """The interpreter of a virtual environment that has `requirements`; made if there is none."""
        ready, fresh = self._environment(requirements), self._here() / "venv"
        if (ready / "bin/python").exists():
            return str(ready / "bin/python")
        if not _can_make_environments():
            raise Refused(
                f"{sys.executable} on the device cannot make virtual environments",
                "install them there (Debian, Ubuntu: sudo apt install python3-venv), "
                "or name an interpreter that has the runtimes as ssh.python",
            )
        self._say(message=f"making an environment on the device: {', '.join(requirements)}")
        pip = [str(fresh / "bin/python"), "-m", "pip", "install", "-q", "--no-input",
               "--disable-pip-version-check", "--only-binary=:all:", *requirements]  # fmt: skip
        try:
            for command in ([sys.executable, "-m", "venv", str(fresh)], pip):
                list(self._run(command, seconds=seconds))
        except Refused as refused:
            raise Refused(
                f"no environment could be made with Python {sys.version.split()[0]}: {refused}",
                refused.fix
                or f"install {' '.join(requirements)} on the device yourself, "
                "and name that interpreter as ssh.python",
            ) from None
        shutil.rmtree(ready, ignore_errors=True)
        fresh.rename(ready)
        return str(ready / "bin/python")

    def do_measure(self, plan: dict[str, Any], python: str | None) -> None:
        """Measure with this interpreter, or that of the visit; `fetch` gives what it leaves."""
        here = self._here()
        (here / "plan.json").write_text(json.dumps(plan))
        arguments = [_runner(), "measure", str(here / "plan.json"), str(here)]
        event: dict[str, Any] = {}
        told = 0.0
        try:
            for line in self._run([python or sys.executable, *arguments]):
                event = json.loads(line)
                if "error" not in event and time.monotonic() - told > _EVERY:
                    self._say(event=event)
                    told = time.monotonic()
        except Refused as refused:
            what = event.get("error", refused)
            raise Refused(f"measuring failed: {what}", refused.fix) from None

    def do_fetch(self, name: str) -> None:
        """The bytes of `result.json` or `samples.npz`, before the answer."""
        assert name in ("result.json", "samples.npz")
        data = (self._here() / name).read_bytes()
        self._say(bytes=len(data))
        _write(data)

    def _run(self, command: list[str], seconds: float | None = None) -> Iterator[str]:
        """The lines that `command` prints. Raises Refused with its last words."""
        with tempfile.TemporaryFile("w+", errors="replace", dir=self._scratch) as log:
            child = self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                errors="replace", start_new_session=True, cwd=self.folder,
                # Even if we are killed, nobody else measures as long as it lives.
                pass_fds=[] if self._lock is None else [self._lock],
            )  # fmt: skip
            timer = threading.Timer(seconds or 0, _kill, [child])
            if seconds is not None:
                timer.start()
            try:
                assert child.stdout is not None
                yield from child.stdout
                code, late = child.wait(), timer.finished.is_set()
            finally:
                timer.cancel()
                _kill(child)
                self._child = None
            if code == 0:
                return
            log.seek(0)
            words = [line.strip() for line in log if line.strip()] or [""]
            told = [line for line in words if line.startswith("ERROR:")] or words
            full = any("No space left" in line for line in words)
            why = f"it took more than {seconds:.0f} s" if late else _ending(code)
            raise Refused(f"{told[-1][:300]} ({why})".strip(), self._make_room() if full else None)

    def _environment(self, requirements: list[str]) -> Path:
        """Its folder's name says all that it is made of."""
        parts = [*sorted(requirements), sys.version, os.uname().machine]
        return self.folder / f"venv-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"

    def _has(self, path: str, size: int, digest: str) -> bool:
        try:
            with self._inside(path).open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
                found = hashlib.sha256()
                while data := file.read(1 << 20):
                    found.update(data)
                return found.hexdigest() == digest
        except OSError:
            return False

    def _inside(self, path: str) -> Path:
        assert path.startswith("files/")
        assert ".." not in Path(path).parts
        return self.folder / path

    def _here(self) -> Path:
        """The folder of what is unfinished; only who has the lock has one."""
        assert self._scratch is not None
        return self._scratch

    def _make_room(self) -> str:
        return f"make room there; what edgekd has sent so far can go: rm -r {self.folder}/files"

    def _listen(self) -> None:
        while select.select([0], [], [], self.silence)[0]:
            data = os.read(0, 1 << 16)
            if not data:
                break
            if self._listening:
                self._chunks.put(data)
        self._leave(0)

    def _line(self) -> bytes:
        """The next request."""
        line = b""
        while not line:
            while b"\n" not in self._rest:
                self._rest += self._chunks.get()
            line, _, self._rest = self._rest.partition(b"\n")
        self._listening = False
        return line

    def _some(self, limit: int) -> bytes:
        """At least one and at most `limit` of the raw bytes that arrive."""
        self._rest = self._rest or self._chunks.get()
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    def _answer(self, **answer: Any) -> None:
        """Say it, ready for what follows it."""
        self._listening = True
        self._say(**answer)

    def _say(self, **answer: Any) -> None:
        _write(json.dumps(answer).encode() + b"\n")

    def _leave(self, code: int) -> None:
        """End what runs, remove what is unfinished and be gone, whatever the other thread does."""
        self._leaving.acquire()
        if self._child is not None:
            _kill(self._child)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        os._exit(code)


def _runner() -> str:
    """The zip file that this is imported from."""
    return str(Path(__file__).absolute().parents[1])


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _open_lock() -> int:
    path = os.environ.get("EDGEKD_LOCK", _LOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(PermissionError):
            # Other users of the device say who they are in it, too.
            os.fchmod(descriptor, 0o666)
        return descriptor
    except OSError as error:
        raise Refused(
            f"the device's lock {path} cannot be opened: {error.strerror}",
            "remove it there, or name another file in the environment variable EDGEKD_LOCK",
        ) from None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _can_make_environments() -> bool:
    from importlib.util import find_spec

    return find_spec("venv") is not None and find_spec("ensurepip") is not None


def _kill(child: subprocess.Popen[str]) -> None:
    """The process and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ending(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"
