"""The trends as one HTML file that opens from disk, in the style of the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgekd.history.entry import Entry
from edgekd.history.series import Change, Series, interval_text, titles, value_text
from edgekd.report import plots
from edgekd.report.checks import figure_name
from edgekd.report.page import page

# More of it stays in the history: `edgekd history export`.
_MOST_ROWS = 60


@dataclass(frozen=True)
class Plot:
    """One metric of one model on one target: SVG, and the newest points as a table."""

    run: str
    title: str
    svg: Markup
    rows: tuple[tuple[str, ...], ...]
    count: int


@dataclass(frozen=True)
class Row:
    """A change point in words."""

    what: str
    where: str
    change: Change
    levels: str


def render(series: Sequence[Series]) -> str:
    """A page with the change points, then a plot per target and metric, each over its table.

    Every text of the history is escaped; the page loads nothing and runs nothing.
    """
    times = [entry.time for s in series for entry in s.entries]
    return page(
        "trend.html.j2",
        __package__,
        changes=list(_changes(series)),
        searched=sum(s.searched for s in series),
        series=series,
        plots=list(_plots(series)),
        first=min(times),
        last=max(times),
    )


def _changes(series: Sequence[Series]) -> Iterator[Row]:
    """The newest first."""
    named = titles(series)
    found = [(s, change) for s in series for change in s.changes]
    for s, change in sorted(found, key=lambda pair: pair[1].first.time, reverse=True):
        yield Row(
            figure_name(s.key.metric, s.key.label),
            f"{s.key.run}: {named[s.key]}",
            change,
            f"{value_text(change.first, change.before)} → {value_text(change.first, change.after)}",
        )


def _plots(series: Sequence[Series]) -> Iterator[Plot]:
    named = titles(series)
    by_place = itertools.groupby(
        sorted(series, key=lambda s: (s.key.run, s.key.target or "")),
        key=lambda s: (s.key.run, s.key.target),
    )
    number = itertools.count()
    for (run, target), here in by_place:
        by_figure: dict[str, list[Series]] = {}
        for s in here:
            by_figure.setdefault(figure_name(s.key.metric, s.key.label), []).append(s)
        for figure, group in by_figure.items():
            title = figure + (f" on {target}" if target else "")
            entries = sorted((e for s in group for e in s.entries), key=lambda e: e.time)
            first = {change.first for s in group for change in s.changes}
            yield Plot(
                run,
                title,
                Markup(_svg(group, [named[s.key] for s in group], title, next(number))),
                tuple(
                    (
                        f"{entry.time:%Y-%m-%d %H:%M}",
                        entry.revision,
                        named[entry.key],
                        value_text(entry),
                        interval_text(entry),
                        _remarks(entry, changed=entry in first),
                    )
                    for entry in reversed(entries[-_MOST_ROWS:])
                ),
                len(entries),
            )


def _remarks(entry: Entry, *, changed: bool) -> str:
    provenance = entry.provenance if entry.provenance != "measured" else ""
    disturbed = "disturbed machine" if entry.noisy else ""
    return ", ".join(filter(None, ("changed" if changed else "", provenance, disturbed)))


def _svg(group: Sequence[Series], labels: Sequence[str], title: str, number: int) -> str:
    """The series of one metric side by side: what was measured at a time shares a position."""
    moments = {entry.time: entry for s in group for entry in s.entries}
    position = {time: i for i, time in enumerate(sorted(moments))}
    trends = [
        plots.Trend(
            label,
            [position[entry.time] for entry in s.entries],
            [entry.value for entry in s.entries],
            [entry.interval for entry in s.entries],
            s.levels,
        )
        for s, label in zip(group, labels, strict=True)
    ]
    ticks = [
        f"{moments[t].revision[:8]}\n{t:%Y-%m-%d}" if moments[t].commit else f"{t:%Y-%m-%d}"
        for t in sorted(moments)
    ]
    dimension = group[0].key.dimension
    return plots.trends(trends, ticks=ticks, dimension=dimension, name=f"t{number}", title=title)
