"""`edgekd gate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary

_FILE = click.Path(path_type=Path)


@click.command("gate")
@line_options
@click.option(
    "--baseline",
    type=_FILE,
    help="Compare with this run, or .onnx or .xml file (gate.baseline).",
)
@click.option(
    "--rerun-baseline/--no-rerun-baseline",
    default=None,
    help="Measure the baseline again beside the student, or compare with what its run measured. "
    "Default: again where its files are there.",
)
@click.option("--budget", type=_FILE, help="YAML file with `budgets:` in place of the run's.")
@click.option("--allow", multiple=True, metavar="DIFFERENCE", help="Add to gate.allow. Repeatable.")
@click.option("--junit", type=_FILE, help="Write a JUnit XML file.")
@click.option("--markdown", type=_FILE, help="Write a Markdown file.")
@click.option("--badge", type=_FILE, help="Write a shields.io endpoint file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Hold the budgets against the results; the exit code is the verdict.

    In GitHub Actions broken budgets become annotations, and the table the step's summary.
    """
    from edgekd.gate import outputs

    files = {name: options.pop(name) for name in ("junit", "markdown", "badge")}
    settings = {
        "baseline": options.pop("baseline"),
        "rerun_baseline": options.pop("rerun_baseline"),
        "allow": list(options.pop("allow")) or None,
        **_budgets(options.pop("budget")),
    }
    if settings["baseline"] is not None:
        settings["baseline"] = str(settings["baseline"].absolute())
    options["overrides"] += tuple(
        f"gate.{key}={json.dumps(value)}" for key, value in settings.items() if value is not None
    )
    run = run_until("gate", **options)
    outputs.write(run.gate, run.manifest.config["name"], files)
    if options["as_json"]:
        print_json(run.gate.model_dump(mode="json"))
    else:
        print_summary(run)
    ctx.exit(run.exit_code)


def _budgets(path: Path | None) -> dict[str, Any]:
    """The gate settings of a budget file."""
    if path is None:
        return {}
    from edgekd.config.load import read_yaml, validate_as
    from edgekd.config.schema import BudgetFile

    value, lines = read_yaml(path)
    return validate_as(BudgetFile, value, where=str(path), lines=lines).model_dump(mode="json")
