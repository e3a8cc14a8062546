"""The end of a stage command on the terminal: teacher against student, and where the files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run


def print_summary(run: Run) -> None:
    """Print the summary table of what the run holds, and the report's path."""
    from rich.console import Console

    from edgekd.report.summary import table

    Console().print(table(run))
    report = run.path / "report.html"
    if report.exists():
        click.echo(f"report: {report}")
