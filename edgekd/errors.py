"""Errors that a user can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations


class EdgekdError(Exception):
    """Base of every error that edgekd raises on purpose; printed without a traceback.

    `what` is one sentence; `where` a file, key or line; `fix` what to do next.
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        fix = f"\n  {self.fix}" if self.fix else ""
        return f"{where}{self.what}{fix}"


class UsageError(EdgekdError):
    """The arguments, the configuration or the files it names cannot be used (exit code 2)."""

    exit_code = 2


class StageError(EdgekdError):
    """A stage failed while it ran (exit code 3)."""

    exit_code = 3


class Waiting(StageError):
    """A stage needs something from elsewhere first; `fix` says what (exit code 3)."""


class Interrupted(EdgekdError):
    """Ctrl-C; what was computed is kept and the same command resumes (exit code 130)."""

    exit_code = 130
