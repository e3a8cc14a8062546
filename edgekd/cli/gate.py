"""`edgekd gate`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary
from edgekd.cli.verdict import end, output_options, take_outputs
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.config.load import KeyPath
    from edgekd.config.schema import BudgetFile
    from edgekd.pipeline.run import Run

_FILE = click.Path(path_type=Path)
_BUDGET = re.compile(r"gate\.budgets\.(\d+)")


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
@output_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Hold the budgets against the results; the exit code is the verdict.

    The options, and --set on gate.KEY, are of this call alone: the run keeps the budgets of its
    configuration, and gate/gate.json says what this gate was held to. In GitHub Actions broken
    budgets become annotations, and the table the step's summary.
    """
    files = take_outputs(options)
    baseline, budget, allow = (options.pop(name) for name in ("baseline", "budget", "allow"))
    settings: dict[str, Any] = {
        "baseline": str(baseline.absolute()) if baseline is not None else None,
        "rerun_baseline": options.pop("rerun_baseline"),
    }
    lines: Mapping[KeyPath, int] = {}
    if budget is not None:
        found, lines = _read(budget)
        settings |= found.model_dump(mode="json")
    options["overrides"] += tuple(
        f"gate.{key}={json.dumps(value)}" for key, value in settings.items() if value is not None
    )
    run = _run(options, allow, budget, lines)

    def show() -> None:
        if options["as_json"]:
            print_json(run.gate.model_dump(mode="json"))
        else:
            print_summary(run)

    end(ctx, run, files, show)


def _read(path: Path) -> tuple[BudgetFile, Mapping[KeyPath, int]]:
    """A budget file, and where in it everything is."""
    from edgekd.config.load import read_yaml, validate_as
    from edgekd.config.schema import BudgetFile

    value, lines = read_yaml(path)
    return validate_as(BudgetFile, value, where=str(path), lines=lines), lines


def _run(
    options: dict[str, Any],
    allow: tuple[str, ...],
    budget: Path | None,
    lines: Mapping[KeyPath, int],
) -> Run:
    """The gate; an error in a budget of the file `budget` names its line."""
    try:
        return run_until("gate", allow=allow, **options)
    except UsageError as error:
        number = _BUDGET.fullmatch(error.where or "")
        if budget is None or number is None:
            raise
        line = lines.get(("budgets", int(number[1])))
        where = f"{budget}:{line}: budgets.{number[1]}"
        raise UsageError(error.what, where=where, fix=error.fix) from None
