"""`edgekd quantize`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary


@click.command("quantize")
@line_options
def command(**options: Any) -> None:
    """Write INT8 versions of the student's files to RUN/quantized/, as `quantize:` says."""
    run = run_until("quantize", **options)
    if options["as_json"]:
        print_json(run.quantize.model_dump(mode="json"))
    else:
        print_summary(run)
