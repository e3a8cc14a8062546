"""`edgekd history`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekd.cli.line import print_json

if TYPE_CHECKING:
    from datetime import datetime

    from edgekd.history.series import Change, Series

F = TypeVar("F", bound=Callable[..., Any])
_LIMIT = 200


class _ListByDefault(click.Group):
    """`edgekd history --metric size` is `edgekd history list --metric size`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("history", cls=_ListByDefault)
def command() -> None:
    """What earlier gates found: values, trends, and the commits at which a figure moved.

    Every gate adds its figures to .edgekd/history.sqlite beside the configuration (`history` in it
    names another file, or null). Without a subcommand: list.
    """


def _file(function: F) -> F:
    return click.option(
        "--file",
        type=click.Path(path_type=Path),
        help="The history. Default: .edgekd/history.sqlite here, or in the nearest folder above.",
    )(function)


def _filters(function: F) -> F:
    """Decorator: which figures are looked at."""
    for option in reversed(
        (
            click.option("--run", help="Only runs of this name."),
            click.option("--metric", help="Only this metric, such as latency_p50."),
            click.option("--label", help="Also class_recall of this class; * for every class."),
            click.option("--target", help="Only this target."),
            click.option("--runtime", help="Only this runtime."),
            click.option("--variant", help="Only f32, int8 or int4 files."),
            click.option("--branch", help="Only what was measured on this branch."),
            click.option(
                "--since", callback=_since, metavar="DATE", help="2026-11-21, or 30d: 30 days ago."
            ),
            click.option(
                "--limit",
                type=click.IntRange(1, 100_000),
                default=_LIMIT,
                show_default=True,
                help="The newest points of each series.",
            ),
        )
    ):
        function = option(function)
    return _file(function)


def _since(ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    from datetime import UTC, datetime, timedelta

    if value is None:
        return None
    try:
        if value.endswith("d") and value[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(days=int(value[:-1]))
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter("should be a date such as 2026-11-21, or 30d") from None


@command.command("list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print the series as JSON.")
def list_(as_json: bool, **options: Any) -> None:
    """The newest value of every figure, its change against the one before, and the trend."""
    series = _series(**options)
    if as_json:
        print_json([_series_json(s) for s in series])
        return
    _print(series)
    if not series:
        click.echo("no figures of this kind in the history")


@command.command("changes")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print the change points as JSON.")
def changes(as_json: bool, **options: Any) -> None:
    """The commits at which a figure moved, newest first: size with its 95 % interval, and levels.

    Series of the same model, target, device, runtime, threads, precision, variant and metric, with
    at least 14 points. In one of a thousand series without a change, one is found. A new level is
    seen once it has lasted for four points or more.
    """
    from edgekd.history.changepoints import FEWEST
    from edgekd.history.series import titles, value_text

    series = _series(**options)
    found = [(s, change) for s in series for change in s.changes]
    found.sort(key=lambda pair: pair[1].first.time, reverse=True)
    if as_json:
        print_json([_change_json(s, change) for s, change in found])
        return
    named = titles(series)
    for s, change in found:
        word = {True: "better", False: "worse", None: ""}[change.better]
        levels = " → ".join(value_text(change.first, v) for v in (change.before, change.after))
        click.secho(f"{s.key.figure}  {s.key.run}: {named[s.key]}", bold=True)
        click.echo(f"    {change.size} {word}  ({levels})")
        branch = f" on {change.first.branch}" if change.first.branch else ""
        click.echo(
            f"    at {change.first.revision}{branch}, {change.first.time:%Y-%m-%d %H:%M} UTC; "
            f"the last before it: {change.last.revision} "
            f"({change.points[0]} points before, {change.points[1]} since)"
        )
        for cause in change.causes:
            click.echo(f"    {cause}")
    short = sum(len(s.entries) < FEWEST for s in series)
    waiting = f"; {short} have fewer than {FEWEST} points yet" if short else ""
    click.echo(f"{_count(len(found), 'change point')} in {len(series)} series{waiting}")


@command.command("plot")
@_filters
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("trend.html"),
    show_default=True,
    help="The page to write.",
)
def plot(output: Path, **options: Any) -> None:
    """Write an HTML page: the trend of every metric per target, with intervals and change points."""
    from edgekd.artifacts import write_text
    from edgekd.errors import UsageError
    from edgekd.history.page import render

    series = _series(**options)
    if not series:
        raise UsageError("no figures of this kind in the history", where="edgekd history plot")
    write_text(output, render(series))
    click.echo(f"wrote {output}: {len(series)} series")


@command.command("export")
@click.argument("output", type=click.Path(path_type=Path, allow_dash=True))
@_file
def export(output: Path, file: Path | None) -> None:
    """Write every figure to OUTPUT (- for standard output) as JSON lines."""
    from edgekd.artifacts import atomic_path
    from edgekd.history import jsonl, store

    entries = store.read(_path(file))
    if str(output) == "-":
        jsonl.dump(entries, sys.stdout)
        return
    with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
        count = jsonl.dump(entries, stream)
    click.echo(f"wrote {output}: {_count(count, 'figure')}")


@command.command("import")
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@_file
def import_(source: Path, file: Path | None) -> None:
    """Add the JSON lines of SOURCE (- for standard input): all of them, or none if one is wrong.

    What the history already has is left as it is.
    """
    from edgekd.errors import UsageError
    from edgekd.history import jsonl

    path = _path(file)
    if str(source) == "-":
        lines, added = jsonl.load(path, sys.stdin.buffer, "standard input")
    else:
        try:
            stream = source.open("rb")
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", where=str(source)) from None
        with stream:
            lines, added = jsonl.load(path, stream, str(source))
    click.echo(f"{_count(lines, 'figure')} read, {added} of them added to {path}")


def _path(file: Path | None) -> Path:
    from edgekd.history.store import DEFAULT

    if file is not None:
        return file
    here = Path.cwd()
    found = (folder / DEFAULT for folder in (here, *here.parents))
    return next((path for path in found if path.is_file()), Path(DEFAULT))


def _series(file: Path | None, **options: Any) -> list[Series]:
    from edgekd.history import store
    from edgekd.history.series import Filter, group

    wanted = Filter(**options)
    return group(store.read(_path(file), since=wanted.since, label=wanted.label), wanted)


def _print(series: list[Series]) -> None:
    """A table per model and place, under what and when its newest point is."""
    import itertools

    from rich.table import Table
    from rich.text import Text

    from edgekd.cli.summary import console
    from edgekd.history.series import interval_text, titles, value_text

    screen, named = console(), titles(series)
    # A narrow terminal has no room for the intervals.
    wide = screen.width >= 100
    in_place = sorted(series, key=lambda s: (s.key.run, named[s.key]))
    for (run, title), group in itertools.groupby(in_place, lambda s: (s.key.run, named[s.key])):
        table = Table(box=None, padding=(0, 2), pad_edge=False, show_header=False)
        table.add_column(min_width=14)
        table.add_column(min_width=13, justify="right", no_wrap=True)
        if wide:
            table.add_column(min_width=30, no_wrap=True)
        table.add_column(min_width=13, justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        for s in group:
            newest = s.entries[-1]
            interval = [interval_text(newest)] if wide else []
            cells = (s.key.figure, value_text(newest), *interval, s.step, s.sparkline())
            table.add_row(*map(Text, cells))
        at = f"  at {newest.revision}, {newest.time:%Y-%m-%d %H:%M} UTC"
        screen.print(Text.assemble((f"{run}  {title}", "bold"), (at, "dim")))
        screen.print(table)


def _series_json(s: Series) -> dict[str, Any]:
    newest = s.entries[-1]
    return {
        **s.key._asdict(),
        "points": len(s.entries),
        "latest": newest.model_dump(mode="json"),
        "previous": s.entries[-2].value if len(s.entries) > 1 else None,
        "values": [entry.value for entry in s.entries],
    }


def _change_json(s: Series, change: Change) -> dict[str, Any]:
    return {
        **s.key._asdict(),
        "commit": change.first.commit,
        "time": change.first.model_dump(mode="json")["time"],
        "previous_commit": change.last.commit,
        "before": change.before,
        "after": change.after,
        "change": change.shift.value,
        "interval": list(change.shift.interval),
        "relative": change.shift.relative,
        "better": change.better,
        "p": change.p,
        "points_before": change.points[0],
        "points_since": change.points[1],
        "also": change.causes,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"
