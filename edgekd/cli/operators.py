"""`edgekd operators`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli.line import print_json
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.results import OperatorProfile


_NUMBERS = ("time", "share", "operations", "speed")
# In a pipe or a log there is no width to fit.
_WIDTH_OF_A_LOG = 160


@click.command("operators")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--runtime", help="Only this runtime.")
@click.option("--target", help="Only this target.")
@click.option("--role", type=click.Choice(["teacher", "student"]), help="Only this model.")
@click.option(
    "--top", default=20, show_default=True, type=click.IntRange(1), help="Rows per model."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was kept as JSON.")
def command(
    run: Path, runtime: str | None, target: str | None, role: str | None, top: int, as_json: bool
) -> None:
    """Show where the time goes in the profiled models of RUN, operator by operator."""
    from edgekd.pipeline.run import Run

    report = Run.open(run).operators
    if report is None:
        raise UsageError(
            "its operators were not profiled",
            where=str(run),
            fix=f"edgekd profile {run} --set profile.operators=true",
        )
    wanted = {"runtime": runtime, "target": target, "role": role}
    profiles = [
        p for p in report.profiles if all(v in (None, getattr(p, k)) for k, v in wanted.items())
    ]
    if not profiles:
        known = sorted({f"{p.role} in {p.runtime} on {p.target}" for p in report.profiles})
        raise UsageError(f"nothing of that kind was profiled; there is: {', '.join(known)}")
    if as_json:
        kept = report.model_copy(update={"profiles": tuple(profiles)})
        print_json(kept.model_dump(mode="json"))
        return
    for profile in profiles:
        _print(profile, top)
    for note in report.notes:
        click.secho(note, fg="yellow")


def _print(profile: OperatorProfile, top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgekd.config.units import format_quantity
    from edgekd.report.operators import module_name

    name = profile.role if profile.variant == "f32" else f"{profile.role} ({profile.variant})"
    click.secho(f"{name} in {profile.runtime} on {profile.target}", bold=True)
    if profile.error:
        click.echo(f"  not available: {profile.error}\n")
        return
    total = sum(o.seconds for o in profile.operators)
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for heading in ("time", "share", "operations", "speed", "operator", "module", "name"):
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    ordered = sorted(profile.operators, key=lambda o: -o.seconds)
    for o in ordered[:top]:
        cells = (
            format_quantity(o.seconds, "time"),
            f"{o.seconds / total:.1%}" if total else "–",
            "–" if o.flops is None else format_quantity(o.flops, "flop"),
            f"{format_quantity(o.flops / o.seconds, 'flop')}/s" if o.flops and o.seconds else "–",
            o.type,
            module_name(o),
            o.name,
        )
        table.add_row(*map(Text, cells))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDTH_OF_A_LOG)
    console.print(table)
    rest = sum(o.seconds for o in ordered[top:])
    others = f", {len(ordered) - top} more take {format_quantity(rest, 'time')}" if rest else ""
    click.echo(
        f"{format_quantity(total, 'time')} in {len(ordered)} operators{others}; the whole inference "
        f"under the profiler {format_quantity(profile.wall, 'time')}\n"
    )
