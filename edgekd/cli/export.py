"""`edgekd export`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("export")
@line_options
def command(**options: Any) -> None:
    """Write the configured formats of teacher and student to RUN/export/."""
    run = run_until("export", **options)
    if options["as_json"]:
        print_json(run.export.model_dump(mode="json"))
    else:
        print_summary(run)
