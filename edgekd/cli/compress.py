"""`edgekd compress`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.artifacts import read_json
from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary
from edgekd.cli.verdict import end, output_options, take_outputs


@click.command("compress")
@line_options
@output_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Teacher to report: run the whole line.

    CONFIG is a YAML file (`edgekd init` writes one) or an existing run folder. What is already
    done is not done again; after Ctrl-C the same command goes on where it stopped. In GitHub
    Actions broken budgets become annotations, and the table the step's summary.
    """
    files = take_outputs(options)
    run = run_until("report", **options)

    def show() -> None:
        if options["as_json"]:
            print_json(read_json(run.path / "report.json"))
        else:
            print_summary(run)

    end(ctx, run, files, show)
