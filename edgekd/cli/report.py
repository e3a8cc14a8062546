"""`edgekd report`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.artifacts import read_json
from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("report")
@line_options
def command(**options: Any) -> None:
    """Write report.html and report.json from what the run holds."""
    run = run_until("report", **options)
    if options["as_json"]:
        print_json(read_json(run.path / "report.json"))
    else:
        print_summary(run)
