"""`edgekd distill`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("distill")
@line_options
def command(**options: Any) -> None:
    """Train the student (and the teacher before it, when it has no weights)."""
    run = run_until("distill", **options)
    if options["as_json"]:
        print_json(
            {role: run.training(role).model_dump(mode="json") for role in ("teacher", "student")}
        )
    else:
        print_summary(run)
