"""`local`: a pool of processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.errors import StageError, UsageError
from edgekd.search.engine import ATTEMPTS, Failure, Job, Outcome, Tell, died, engine
from edgekd.search.records import Rung

_ROOT = Path(__file__).parents[3]
# What a training gets to write its checkpoint in.
_PATIENCE = 20.0


@engine("local")
class Local:
    """Each process runs one trial after the other."""

    def __init__(self, address: str, jobs: int | None) -> None:
        if address:
            raise UsageError(
                f"local takes no address, not {address!r}", where="search.engine", fix="local"
            )
        self.size = jobs or 1

    def run(self, jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[Job, Outcome]]:
        """Every job; when the caller stops early, its processes save what they have and end."""
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Job, Outcome] | BaseException] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        workers = [_Worker() for _ in range(min(self.size, len(jobs)))]
        threads = [
            threading.Thread(target=_serve, args=(worker, waiting, done, tell), daemon=True)
            for worker in workers
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in jobs:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            for worker in workers:
                worker.close()
            for worker in workers:
                worker.wait()


def _serve(
    worker: _Worker,
    waiting: queue.SimpleQueue[Job],
    done: queue.SimpleQueue[tuple[Job, Outcome] | BaseException],
    tell: Tell,
) -> None:
    try:
        while not worker.closed:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((job, _tried(worker, job, tell)))
    except BaseException as error:  # whatever it is, the one who waits must hear of it
        done.put(error)


def _tried(worker: _Worker, job: Job, tell: Tell) -> Outcome:
    how = ""
    for _ in range(ATTEMPTS):
        outcome = worker.ask(job, tell)
        if not isinstance(outcome, str):
            return outcome
        how = outcome
        if worker.closed:
            break
    return died(job, how)


class _Worker:
    """A process, started when it is first asked and again when it has died."""

    def __init__(self) -> None:
        self.closed = False
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115

    def ask(self, job: Job, tell: Tell) -> Outcome | str:
        """What comes of a job, or how its process died."""
        process = self._started(job)
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job.model_dump_json() + "\n")
            process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line)
            if "rung" in said:
                return Rung.model_validate(said["rung"])
            if "failure" in said:
                return Failure.model_validate(said["failure"])
            tell(job, said["share"] * job.until)
        code = process.wait()
        self._process = None
        if code < 0:
            return signal.Signals(-code).name
        self._log.seek(0)
        words = self._log.read().strip().splitlines()
        return words[-1][:200] if words else f"exit code {code}"

    def _started(self, job: Job) -> subprocess.Popen[str]:
        if self._process is None:
            threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "edgekd.search.worker"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                    env={**os.environ, "PYTHONPATH": _path(), **threads},
                    # Ctrl-C is ours alone: we tell them to stop, once.
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise StageError(f"no process for a trial can be started: {error}") from None
        return self._process

    def close(self) -> None:
        """Tell it to stop, with whatever libraries started in it: a training writes its checkpoint first."""
        self.closed = True
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)  # it leads a session of its own

    def wait(self) -> None:
        """Until it has stopped."""
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()


def _path() -> str:
    """Where this very edgekd is found, and whatever else was on the path."""
    return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
