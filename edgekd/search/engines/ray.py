"""`ray://HOST:PORT`: trials as tasks of a Ray cluster; `ray://` alone starts one on this machine.

The folder of the run has to be on a file system that every machine sees, and edgekd installed on each:
a trial whose worker dies is tried again by Ray, wherever it likes, from the checkpoint in that folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd.artifacts import write_text
from edgekd.errors import EdgekdError, Interrupted, UsageError
from edgekd.progress import Figure, Silent, Task
from edgekd.search.engine import ATTEMPTS, Failure, Job, Outcome, Tell, died, engine
from edgekd.search.records import Rung

_ROOT = Path(__file__).parents[3]
# How far a trial is, for whoever looks: the share that is done, in its folder.
_SHARE = ".share"
_POLL = 0.5
_CONNECT = 10.0


@engine("ray")
class Ray:
    """Each job is a task with as many cores as it has threads."""

    def __init__(self, address: str, jobs: int | None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UsageError(
                "Ray is not installed", where="search.engine", fix="pip install 'edgekd[ray]'"
            )
        if address:
            _answers(address)
        self.address, self.jobs = address, jobs

    def run(self, jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[Job, Outcome]]:
        """Every job; when the caller stops early, those in progress save what they have."""
        import ray

        waiting, pending = list(jobs), dict[Any, Job]()
        with self._connected():
            task = ray.remote(trial)
            try:
                while waiting or pending:
                    while waiting and len(pending) < (self.jobs or len(jobs)):
                        job = waiting.pop(0)
                        options = task.options(
                            name=job.name,
                            num_cpus=job.threads or 1,
                            max_retries=ATTEMPTS - 1,
                            retry_exceptions=False,
                        )
                        pending[options.remote(job.model_dump_json())] = job
                    done, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL)
                    for job in pending.values():
                        _look(job, tell)
                    for reference in done:
                        job = pending.pop(reference)
                        yield job, _outcome(job, reference)
            finally:
                for reference in pending:
                    with contextlib.suppress(Exception):
                        ray.cancel(reference, force=False)
                if pending:
                    # So that their checkpoints are written before a cluster of ours is gone.
                    ray.wait(list(pending), num_returns=len(pending), timeout=20)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        import ray

        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        about: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "error",
            "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        }
        about |= {"address": self.address} if self.address else {"include_dashboard": False}
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**about)
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise _absent(self.address or "this machine", line) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray would end the program in mid-air
        try:
            yield
        finally:
            ray.shutdown()


def _answers(address: str) -> None:
    """Ray itself tries for minutes. Raises UsageError where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"ray://{address} should be ray://HOST:PORT, or ray:// for this machine",
            where="search.engine",
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT).close()
    except OSError as error:
        raise _absent(address, error.strerror or str(error)) from None


def _absent(address: str, reason: str) -> UsageError:
    return UsageError(
        f"no Ray cluster at {address}: {reason}",
        where="search.engine",
        fix="`ray start --head` starts one and prints its address; ray:// alone starts one here",
    )


def trial(text: str) -> str:
    """In a worker of the cluster: a job and what comes of it, both as JSON."""
    from edgekd.search import trial as trials

    job = Job.model_validate_json(text)
    try:
        return json.dumps({"rung": trials.run(job, _Share(job)).model_dump(mode="json")})
    except Interrupted:
        raise
    except EdgekdError as error:
        return json.dumps({"failure": Failure.of(error).model_dump(mode="json")})
    except Exception as error:  # of a user's network, as a rule; the others go on
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        return json.dumps({"failure": Failure(kind="stage", what=what).model_dump(mode="json")})


def _outcome(job: Job, reference: Any) -> Outcome:
    import ray

    try:
        said = json.loads(ray.get(reference))
    except ray.exceptions.RayError as error:
        return died(job, type(error).__name__)
    if "rung" in said:
        return Rung.model_validate(said["rung"])
    return Failure.model_validate(said["failure"])


class _Share(Silent):
    """Progress as a small file that the engine looks at."""

    def __init__(self, job: Job) -> None:
        self.path = Path(job.folder) / _SHARE

    @contextmanager
    def task(self, name: str, total: float | None = None, done: float = 0) -> Iterator[Task]:
        """A task whose share is written now and then."""
        yield _ShareTask(self.path, total or 0.0, done)


class _ShareTask:
    def __init__(self, path: Path, total: float, done: float) -> None:
        self.path, self.total, self.done, self.told = path, total, done, time.monotonic()

    def advance(self, amount: float = 1, **figures: Figure) -> None:
        self.done += amount
        if self.total and time.monotonic() - self.told > 2 * _POLL:
            self.told = time.monotonic()
            write_text(self.path, f"{self.done / self.total:.6f}")


def _look(job: Job, tell: Tell) -> None:
    with contextlib.suppress(OSError, ValueError):
        tell(job, float((Path(job.folder) / _SHARE).read_text()) * job.until)
