"""`edgekd verify`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("verify")
@line_options
def command(**options: Any) -> None:
    """Check every exported file against PyTorch on real inputs, in its own runtime."""
    run = run_until("verify", **options)
    if options["as_json"]:
        print_json(run.verify.model_dump(mode="json"))
    else:
        print_summary(run)
