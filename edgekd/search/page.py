"""A search as one HTML file that opens from disk, in the style of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from markupsafe import Markup

from edgekd.config.units import Dimension, format_quantity
from edgekd.report import plots
from edgekd.report.page import page
from edgekd.search.front import AXES, best
from edgekd.search.records import Point, SearchReport

_TITLES = {"latency_p50": "p50 latency", "memory": "memory", "size": "file size"}


@dataclass(frozen=True)
class Row:
    """A point in words."""

    point: Point
    accuracy: str
    costs: tuple[str, ...]
    front: str
    wrong: tuple[str, ...]
    best: bool


def render(report: SearchReport) -> str:
    """A page with the winner, a plot per cost, and every trial; it loads nothing and runs nothing."""
    rows = [_row(report, i) for i in range(len(report.points))]
    rows.sort(key=lambda row: (-row.point.epochs, -row.point.accuracy.value))
    names = {name: _TITLES[name] for name in AXES}
    return page(
        "search.html.j2",
        __package__,
        report=report,
        winner=report.best_point,
        rows=rows,
        axes=names,
        plots=[plot for metric in AXES if (plot := _plot(report, metric)) is not None],
        percent=lambda share: f"{share:.2%}",
    )


def _row(report: SearchReport, i: int) -> Row:
    p = report.points[i]
    low, high = p.accuracy.interval
    return Row(
        p,
        f"{p.accuracy.value:.2%} [{low:.2%}, {high:.2%}]",
        tuple(_shown(p, metric) for metric in AXES),
        ", ".join(_TITLES[metric] for metric in p.front),
        tuple(s.text for s in p.standings if not s.holds),
        i == report.winner,
    )


def _shown(point: Point, metric: str) -> str:
    if metric not in point.costs:
        return "–"
    text = format_quantity(point.costs[metric], _dimension(metric))
    return f"{text} (predicted)" if point.provenance == "predicted" else text


def _plot(report: SearchReport, metric: str) -> tuple[str, Markup] | None:
    known = [p for p in report.points if metric in p.costs]
    if not known:
        return None
    title = f"Validation accuracy against {_TITLES[metric]} on {report.place}"
    points = [
        plots.Point(
            p.family,
            f"{p.method}, {p.variant}",
            p.costs[metric],
            _interval(p, metric),
            p.accuracy.value,
            p.accuracy.interval,
            hollow=p.epochs < report.rungs[-1],
        )
        for p in known
    ]
    svg = plots.pareto(
        points, name=f"front-{metric}", title=title, cost=_TITLES[metric],
        dimension=_dimension(metric), split="validation",
    )  # fmt: skip
    count = len(best(known, metric))
    return f"{title}: {count} of {len(known)} are on the front", Markup(svg)


def _interval(point: Point, metric: str) -> tuple[float, float]:
    value = point.costs[metric]
    if metric != "latency_p50" or point.latency_interval is None:
        return value, value
    return point.latency_interval


def _dimension(metric: str) -> Dimension:
    return cast(Any, AXES[metric])  # type: ignore[no-any-return]
