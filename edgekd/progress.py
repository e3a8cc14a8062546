"""Progress on standard error: bars with ETA and live figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

Figure = float | str


class Task(Protocol):
    """One piece of work in progress."""

    def advance(self, amount: float = 1, **figures: Figure) -> None:
        """Move on by `amount` and show the figures (loss, accuracy, …)."""


class Progress(Protocol):
    """Where the stages tell how far they are."""

    def task(
        self, name: str, total: float | None = None, done: float = 0
    ) -> contextlib.AbstractContextManager[Task]:
        """Start a task of `total` units (None: unknown), `done` of them already behind us."""

    def say(self, text: str) -> None:
        """One line for the user that stays."""

    def warn(self, text: str) -> None:
        """One line that is said even where nothing else is."""


class Silent:
    """Nothing but warnings: the Python API's default, and `--quiet`."""

    def advance(self, amount: float = 1, **figures: Figure) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None, done: float = 0) -> Iterator[Task]:
        """A task that shows nothing."""
        yield self

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Print one line on standard error."""
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Lines:
    """For logs and CI: a line when a task starts and ends, and every `every` seconds between."""

    def __init__(self, every: float = 15.0) -> None:
        self.every = every

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None, done: float = 0) -> Iterator[Task]:
        """A task shown as occasional lines."""
        task = _LineTask(self, name, total, done)
        yield task
        task.end()

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print one line."""
        self.say(f"  warning: {text}")


class _LineTask:
    def __init__(self, lines: Lines, name: str, total: float | None, done: float) -> None:
        self.lines, self.name, self.total, self.done = lines, name, total, done
        self.started = self.shown = time.monotonic()
        self.figures: dict[str, Figure] = {}

    def advance(self, amount: float = 1, **figures: Figure) -> None:
        self.done += amount
        self.figures |= figures
        if time.monotonic() - self.shown >= self.lines.every:
            self.shown = time.monotonic()
            share = f" {self.done / self.total:4.0%}" if self.total else ""
            self.lines.say(f"  {self.name}{share}  {format_figures(self.figures)}")

    def end(self) -> None:
        seconds = time.monotonic() - self.started
        self.lines.say(f"  {self.name}: {seconds:.1f} s  {format_figures(self.figures)}".rstrip())


class Bars:
    """For people: rich progress bars."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None, done: float = 0) -> Iterator[Task]:
        """A task shown as a bar with elapsed time, ETA and its figures."""
        bar, shown = bar_of(self.console, name, total, done)
        with bar:
            yield shown

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """Print one line above the bars."""
        self.say(f"  warning: {text}")


def bar_of(
    console: Console, name: str, total: float | None, done: float
) -> tuple[RichProgress, Task]:
    """A bar that is not shown yet, and its task."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description:<22}", markup=False),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task(name, total=total, completed=done, figures="")  # type: ignore[arg-type]
    return bar, _BarTask(bar, task)


class _BarTask:
    def __init__(self, bar: object, identifier: int) -> None:
        from rich.progress import Progress, TaskID

        assert isinstance(bar, Progress)
        self.bar, self.identifier = bar, TaskID(identifier)

    def advance(self, amount: float = 1, **figures: Figure) -> None:
        if figures:
            self.bar.update(self.identifier, advance=amount, figures=format_figures(figures))
        else:
            self.bar.advance(self.identifier, amount)


def default_progress(quiet: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()


def format_figures(figures: dict[str, Figure]) -> str:
    """`{"loss": 0.1234, "epoch": "3/30"}` → "loss 0.123  epoch 3/30"."""
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
