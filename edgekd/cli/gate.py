"""`edgekd gate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("gate")
@line_options
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="Compare with this run (gate.baseline)."
)
@click.option("--junit", type=click.Path(path_type=Path), help="Write a JUnit XML file.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a Markdown file.")
@click.option("--badge", type=click.Path(path_type=Path), help="Write a shields.io endpoint file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Hold the budgets against the results; the exit code is the verdict.

    In GitHub Actions broken budgets become annotations, and the table the step's summary.
    """
    from edgekd.gate import outputs

    files = {name: options.pop(name) for name in ("junit", "markdown", "badge")}
    baseline = options.pop("baseline")
    if baseline is not None:
        options["overrides"] += (f"gate.baseline={json.dumps(str(baseline.absolute()))}",)
    run = run_until("gate", **options)
    outputs.write(run.gate, run.manifest.config["name"], files)
    if options["as_json"]:
        print_json(run.gate.model_dump(mode="json"))
    else:
        print_summary(run)
    ctx.exit(run.exit_code)
