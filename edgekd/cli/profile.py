"""`edgekd profile`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("profile")
@line_options
def command(**options: Any) -> None:
    """Measure latency, throughput and memory of every exported file on every target."""
    run = run_until("profile", **options)
    if options["as_json"]:
        print_json(run.profile.model_dump(mode="json"))
    else:
        print_summary(run)
