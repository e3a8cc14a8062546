"""`edgekd gate`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("gate")
@line_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Hold the budgets against the results; the exit code is the verdict."""
    run = run_until("gate", **options)
    if options["as_json"]:
        print_json(run.gate.model_dump(mode="json"))
    else:
        print_summary(run)
    ctx.exit(run.exit_code)
