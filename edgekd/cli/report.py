"""`edgekd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekd.artifacts import read_json
from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import console, print_summary
from edgekd.errors import UsageError


@click.command("report")
@line_options
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--compare", is_flag=True, help="Put several finished runs side by side.")
@click.option(
    "-o",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With --compare: also write it as one HTML file.",
)
def command(more: tuple[Path, ...], compare: bool, page: Path | None, **options: Any) -> None:
    """Write what a run holds as report.html, report.json, MODEL_CARD.md and sbom.json.

    With --compare, accuracy, latency, memory and size of RUN RUN … side by side, what was
    configured otherwise, and what keeps them from being compared.
    """
    if compare:
        _compare([path for path in (options["config"], *more) if path], page, options)
        return
    if more or page:
        raise UsageError(
            f"{'several runs' if more else '-o'} without --compare",
            fix="edgekd report --compare RUN RUN -o compare.html",
        )
    run = run_until("report", **options)
    if options["as_json"]:
        print_json(read_json(run.path / "report.json"))
    else:
        print_summary(run)


def _compare(runs: list[Path], page: Path | None, options: dict[str, Any]) -> None:
    for name in ("example", "overrides", "out", "force"):
        if options[name]:
            option = {"overrides": "set"}.get(name, name)
            raise UsageError(f"--{option} does not go with --compare, which changes no run")
    from edgekd.report.runs import side_by_side

    compared = side_by_side(runs)
    if page is not None:
        from edgekd.artifacts import write_text
        from edgekd.report.runs_page import render

        write_text(page, render(compared))
    if options["as_json"]:
        print_json(compared.document())
        return
    from edgekd.report.runs_page import terminal

    console().print(terminal(compared))
    if page is not None:
        click.echo(f"page: {page}")
