"""The end of a stage command on the terminal: teacher against student, and where the files are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from edgekd.pipeline.run import Run
    from edgekd.results import ProfileReport

# In a pipe or a log there is no width to fit.
_WIDTH_OF_A_LOG = 120


def console() -> Console:
    """Standard output for tables, wide enough where it is no terminal."""
    from rich.console import Console

    screen = Console()
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen = Console(width=_WIDTH_OF_A_LOG)
    return screen


def print_summary(run: Run) -> None:
    """Print the summary table of what the run holds, and the report's path."""
    from edgekd.pipeline.standing import standing
    from edgekd.report.summary import table

    console().print(table(run))
    report = run.path / "report.html"
    if not report.exists():
        return
    if "report" in standing(run):
        click.echo(f"report: {report}")
    else:
        click.echo(f"{report} is older than these figures: `edgekd report {run.path}` renews it")


def print_profile(profile: ProfileReport) -> None:
    """Print what was measured, and what of it is in doubt."""
    from edgekd.report.summary import measured_table

    console().print(measured_table(profile))
    for warning in profile.warnings:
        click.echo(f"note: {warning}")
