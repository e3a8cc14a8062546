"""A search on the terminal: one bar over everything, and the front above it as it grows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol

from edgekd.progress import Bars, Progress, Task
from edgekd.search.engine import Job


class Board(Protocol):
    """Where a search tells how far its trials are."""

    def told(self, job: Job, epochs: float) -> None:
        """So many epochs of a trial are done by now."""

    def show(self, front: str, **figures: float | str) -> None:
        """The front as it is now, drawn, and figures beside the bar."""


class _Counting:
    """Epochs of all trials; engines tell from threads of their own."""

    def __init__(self, task: Task, begun: dict[str, float]) -> None:
        self.task, self.done, self.lock = task, dict(begun), threading.Lock()

    def told(self, job: Job, epochs: float) -> None:
        with self.lock:
            before = self.done.get(job.id, 0.0)
            if epochs > before:
                self.done[job.id] = epochs
                self.task.advance(epochs - before)

    def show(self, front: str, **figures: float | str) -> None:
        with self.lock:
            self.task.advance(0, **figures)


class _Live(_Counting):
    """With the front drawn above the bar."""

    def __init__(self, task: Task, begun: dict[str, float], live: object, bar: object) -> None:
        super().__init__(task, begun)
        self.live, self.bar = live, bar

    def show(self, front: str, **figures: float | str) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        super().show(front, **figures)
        assert isinstance(self.live, Live)
        self.live.update(Group(Text(front), self.bar))  # type: ignore[arg-type]


@contextlib.contextmanager
def board(progress: Progress, name: str, total: float, begun: dict[str, float]) -> Iterator[Board]:
    """`begun` are the epochs of every trial that are done already, of `total` in all."""
    if not isinstance(progress, Bars):
        with progress.task(name, total, sum(begun.values())) as task:
            yield _Counting(task, begun)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from edgekd.progress import bar_of

    bar, task = bar_of(progress.console, name, total, sum(begun.values()))
    with Live(Group(Text(""), bar), console=progress.console, refresh_per_second=4) as live:
        yield _Live(task, begun, live, bar)
