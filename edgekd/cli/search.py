"""`edgekd search`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli.line import print_json, resolve
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.search.records import SearchReport

_PATH = click.Path(path_type=Path)


@click.command("search")
@click.argument("config", required=False, type=_PATH)
@click.option("--example", metavar="NAME", help="Use a bundled configuration (digits).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option("--out", type=_PATH, help="Folder of the search. Default: runs/<name>-search.")
@click.option(
    "--best", type=_PATH, help="Where the winner is written. Default: <name>.best.yaml by CONFIG."
)
@click.option("--trials", type=click.IntRange(1), help="Networks times methods to train, at most.")
@click.option("--candidates", type=click.IntRange(1), help="Networks to cost, at most.")
@click.option("--rungs", type=click.IntRange(1, 10), help="Of successive halving.")
@click.option("--epochs", type=click.IntRange(1), help="At which the last rung ends.")
@click.option("--methods", help="Such as kd,dkd,dist: each in the place of distill.methods.")
@click.option("--on", "engine", help="Where trials run: local, or ray://HOST:PORT.")
@click.option("--jobs", type=click.IntRange(1), help="Trials at once.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; errors and results only.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    config: Path | None,
    example: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    best: Path | None,
    methods: str | None,
    quiet: bool,
    as_json: bool,
    **options: int | str | None,
) -> None:
    """Find the student that meets gate.budgets with the best validation accuracy.

    The teacher is trained or loaded once. Networks smaller than it are costed on the budgeted targets
    before any training; those that can meet the budgets are distilled for a while, the better ones on, and
    the winner is written as a configuration that `edgekd compress` takes, which finishes its training.
    After Ctrl-C the same command goes on. Exit code 1: none meets the budgets; the closest is written,
    trained or, where no candidate can meet those on cost, not.
    """
    from edgekd.pipeline.line import resolve_folder
    from edgekd.progress import default_progress
    from edgekd.search.search import SUFFIX, search

    given = [f"search.{key}={value}" for key, value in options.items() if value is not None]
    if methods is not None:
        lists = [name.split("+") for name in methods.split(",")]
        given.append(f"search.methods={json.dumps(lists)}")
    try:
        resolved, base, _ = resolve(config, example, ("student=auto", *overrides, *given), out)
    except UsageError as error:
        # That option nobody gave.
        raise UsageError(
            error.what.replace("--set student: ", ""), where=error.where, fix=error.fix
        ) from None
    folder = out or Path("runs") / f"{resolved.name}{SUFFIX}"
    progress = default_progress(quiet)
    with contextlib.redirect_stdout(sys.stderr):
        report = search(
            resolved,
            base=base,
            out=resolve_folder(resolved, folder),
            progress=progress,
            goes_on=[folder.parent / resolved.name],
            best=best or base / f"{resolved.name}.best.yaml",
            command=shlex.join(["edgekd", *sys.argv[1:]]),
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report, resolved, folder)
    ctx.exit(0 if report.found else 1)


def _print(report: SearchReport, config: Config, folder: Path) -> None:
    """The front, every trial, and what was found."""
    from rich.table import Table

    from edgekd.cli.summary import console
    from edgekd.config.units import format_quantity
    from edgekd.search import front
    from edgekd.search.search import summary

    page = folder / "search.html"
    if report.closest is not None:
        click.secho(summary(report), bold=True, fg="yellow")
        click.echo(f"page: {page}\nthe closest, not trained: {report.best}")
        return
    standings = report.best_point.standings if report.best_point else ()
    limits = [s.limit for s in standings if s.budget.startswith("latency_p50")]
    click.echo(front.drawn(report.points, limits[0] if limits else None))
    table = Table("", "candidate", "method", "precision", "epochs", "validation", "p50", "size")
    ordered = sorted(report.points, key=lambda p: (-p.epochs, -p.accuracy.value))
    for p in ordered:
        mark = "★" if p == report.best_point else "●" if "latency_p50" in p.front else ""
        latency, size = p.costs.get("latency_p50"), p.costs.get("size")
        costs = [
            "–" if latency is None else format_quantity(latency, "time"),
            "–" if size is None else format_quantity(size, "bytes"),
        ]
        table.add_row(
            mark, p.candidate, p.method, p.variant, str(p.epochs), f"{p.accuracy.value:.2%}", *costs
        )
    console().print(table)
    click.echo(f"p50 and size: {report.place}; ● nothing beats it in accuracy and p50, ★ chosen")
    if report.costed_out:
        click.echo(f"{len(report.costed_out)} candidates were too dear to be trained")
    click.secho(summary(report), bold=True, fg="green" if report.found else "yellow")
    click.echo(f"page: {page}\nnext: {shlex.join(_next(report, folder))}")


def _next(report: SearchReport, folder: Path) -> list[str]:
    """The command that goes on with the winner's training, which waits beside the search."""
    command = ["edgekd", "compress", str(report.best)]
    runs = folder.parent
    return command if runs == Path("runs") else [*command, "--out", str(runs / report.name)]
