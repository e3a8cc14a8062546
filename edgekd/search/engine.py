"""Where trials run. One file per engine under `engines/`, registered by `@engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from edgekd.errors import EdgekdError, StageError, UsageError
from edgekd.registry import Registry
from edgekd.results import Record
from edgekd.search.records import Rung

# A trial whose process dies is begun again, from its checkpoint, at most so often.
ATTEMPTS = 3


class Job(Record):
    """Train a trial up to `until` epochs: `config` is the whole configuration with its student.

    `run` is the search's folder, with the teacher in it; `folder` the trial's own. Paths are absolute: an
    engine of several machines needs them on a file system that all of them see.
    """

    id: str
    name: str
    config: dict[str, Any]
    base: str
    run: str
    folder: str
    until: int
    quantized: bool = False
    threads: int | None = None


class Failure(Record):
    """An error of a trial, as it goes from one process to another."""

    kind: Literal["usage", "stage"]
    what: str
    where: str | None = None
    fix: str | None = None

    @classmethod
    def of(cls, error: EdgekdError) -> Failure:
        """What can be told of it."""
        kind: Literal["usage", "stage"] = "usage" if isinstance(error, UsageError) else "stage"
        return cls(kind=kind, what=error.what, where=error.where, fix=error.fix)

    def error(self) -> EdgekdError:
        """As it was raised."""
        raised = UsageError if self.kind == "usage" else StageError
        return raised(self.what, where=self.where, fix=self.fix)


Outcome = Rung | Failure
# (job, epochs of it that are done by now)
Tell = Callable[[Job, float], None]


class Engine(Protocol):
    """Runs every job once, wherever it likes, and gives what comes of them as it comes.

    It is made of (the text behind `NAME://`, how many at once or None). A job whose process dies is tried
    again, `ATTEMPTS` times in all; `edgekd.search.trial.run` goes on from its checkpoint.
    """

    def run(self, jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[Job, Outcome]]:
        """Jobs with what came of them, in any order; closing the iterator stops those in progress."""


ENGINES: Registry[Callable[[str, int | None], Engine]] = Registry("engine", "edgekd.search.engines")
engine = ENGINES.register


def engine_of(text: str, jobs: int | None) -> Engine:
    """`local`, or `NAME://ADDRESS`. Raises UsageError for an engine that there is not."""
    name, _, address = text.partition("://")
    try:
        made = ENGINES.get(name)
    except UsageError as error:
        raise UsageError(error.what, where="search.engine") from None
    return made(address, jobs)


def died(job: Job, how: str) -> Failure:
    """What is said of a trial whose process died every time."""
    return Failure(
        kind="stage",
        what=f"its process died {ATTEMPTS} times ({how})",
        where=f"trial {job.name}",
        fix="it may be too large for the memory: search.jobs=1, or a smaller distill.batch_size",
    )
