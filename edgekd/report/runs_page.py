"""Several runs side by side, as one HTML file and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekd.report import plots
from edgekd.report.comparison import Value, deployed_accuracy, figure_text, interval_text
from edgekd.report.html import runs_as
from edgekd.report.page import page
from edgekd.report.plots import Plot
from edgekd.report.runs import Line, Side, SideBySide
from edgekd.report.text import one_line
from edgekd.results import Interval, Measurement

_MOST_TARGETS = 12


def render(compared: SideBySide) -> str:
    """A self-contained page; every text from models, data and devices is escaped."""
    return page("compare.html.j2", compared=compared, pareto=tuple(_pareto(compared)))


def _pareto(compared: SideBySide) -> Iterator[Plot]:
    """One plot per target with the files of every run."""
    found = [(side, *file) for side in compared.sides for file in _measured(side)]
    targets = list(dict.fromkeys(m.target for _, m, _, _ in found))[:_MOST_TARGETS]
    for position, target in enumerate(targets):
        here = [entry for entry in found if entry[1].target == target]
        title = f"Test accuracy against p50 latency on {target}"
        points = [
            plots.Point(
                side.name, runs_as(m), m.latency.p50, m.latency.p50_interval, a.number, interval,
                hollow=m.role == "teacher",
            )
            for side, m, a, interval in here
        ]  # fmt: skip
        yield Plot(
            title,
            Markup(plots.pareto(points, name=f"pareto-{position}", title=title)),
            ("run", "model", "runtime", "p50", "95 % interval", "accuracy", "95 % interval"),
            tuple(
                (
                    side.name,
                    m.role,
                    runs_as(m),
                    figure_text(m.latency.p50, "time"),
                    interval_text(m.latency.p50_interval, "time"),
                    a.text,
                    interval_text(interval, "share"),
                )
                for side, m, a, interval in here
            ),
            "Hollow marks are teachers, filled ones students.",
        )


def _measured(side: Side) -> Iterator[tuple[Measurement, Value, Interval]]:
    """Every measured file whose accuracy is known."""
    for m in side.contents.profile.measurements if side.contents.profile else ():
        accuracy = deployed_accuracy(side.contents, m)
        if accuracy and accuracy.interval:
            yield m, accuracy, accuracy.interval


def terminal(compared: SideBySide) -> RenderableType:
    """Figures, settings and warnings; names are plain text, not markup."""
    names = [side.name for side in compared.sides]
    parts: list[RenderableType] = []
    for group in compared.groups:
        table = _table(group.place.title, names)
        for line in group.lines:
            table.add_row(Text(line.label), *(_cell(line, i) for i in range(len(names))))
        parts += [
            table,
            *(Text(one_line(f"{x.label}: {x.note}"), "yellow") for x in group.lines if x.note),
        ]
        parts.append(Text(""))
    if compared.settings:
        table = _table("configured otherwise", names)
        for setting in compared.settings:
            table.add_row(Text(one_line(setting.key)), *(Text(one_line(v)) for v in setting.values))
        parts += [table, Text("")]
    parts += [Text(one_line(f"warning: {warning}"), "yellow") for warning in compared.warnings]
    return Group(*parts)


def _table(title: str, names: list[str]) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column(Text(one_line(title), "bold"), overflow="fold")
    for name in names:
        table.add_column(Text(one_line(name)), justify="right", overflow="fold")
    return table


def _cell(line: Line, position: int) -> Text:
    """The figure, its interval, and the change against the first run, one below the other."""
    value, change = line.values[position], line.changes[position]
    if value is None:
        return Text("–", justify="right")
    rows = [value.text]
    if value.interval_text:
        rows.append(value.interval_text)
    if change:
        bounds = f" ({change.interval_text})" if change.interval_text else ""
        rows.append(f"{change.text}{bounds}")
    text = Text(rows[0], justify="right")
    for row in rows[1:]:
        text.append(f"\n{row}", "dim")
    return text
