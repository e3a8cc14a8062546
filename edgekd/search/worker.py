"""A process that runs trials: jobs come in as lines of JSON on standard input, results go out as such.

When standard input ends, whoever gave the jobs is gone: a training saves its checkpoint and stops.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from edgekd.errors import EdgekdError, Interrupted
from edgekd.progress import Figure, Task
from edgekd.search.engine import Failure, Job

# Seconds between two lines about the same training.
_EVERY = 0.3


class Told:
    """Progress as lines of JSON: the share of the task that is done; what is said goes to the log."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    @contextmanager
    def task(self, name: str, total: float | None = None, done: float = 0) -> Iterator[Task]:
        """A task whose share is told now and then."""
        yield _Shared(self, total or 0.0, done)

    def say(self, text: str) -> None:
        """For the log."""
        print(text, file=sys.stderr, flush=True)

    warn = say

    def send(self, **value: Any) -> None:
        """One line for whoever gave the job."""
        print(json.dumps(value), file=self.out, flush=True)


class _Shared:
    def __init__(self, progress: Told, total: float, done: float) -> None:
        self.progress, self.total, self.done, self.told = progress, total, done, 0.0

    def advance(self, amount: float = 1, **figures: Figure) -> None:
        self.done += amount
        if self.total and time.monotonic() - self.told > _EVERY:
            self.told = time.monotonic()
            self.progress.send(share=self.done / self.total)


def main() -> None:
    """Serve until standard input ends."""
    # What a user's module prints must not get between the lines.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    told, jobs = Told(out), _jobs()
    while (line := jobs.get()) is not None:
        try:
            told.send(rung=_serve(Job.model_validate_json(line), told))
        except Interrupted:
            return
        except EdgekdError as error:
            told.send(failure=Failure.of(error).model_dump(mode="json"))
        except Exception as error:  # of a user's network, as a rule; the others go on
            what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            failure = Failure(kind="stage", what=what)
            told.send(failure=failure.model_dump(mode="json"))


def _serve(job: Job, told: Told) -> dict[str, Any]:
    from edgekd.search import trial

    return trial.run(job, told).model_dump(mode="json")


def _jobs() -> queue.Queue[str | None]:
    """The lines of standard input, None when there will be no more; then work in progress is stopped."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        # It leads a session of its own: whatever libraries started in it goes too.
        os.killpg(os.getpgid(0), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    main()
