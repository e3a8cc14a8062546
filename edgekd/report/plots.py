"""Plots as inline SVG: small, themed by CSS, and inert whatever the names in them are."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from edgekd.config.units import Dimension, format_quantity
from edgekd.report.contents import ROLES
from edgekd.report.text import one_line
from edgekd.results import AccuracyAware, History, Interval, Role

# Stand-ins that become CSS once the SVG is written, so that one plot serves light, dark and print.
_INK = "#010203"
_PAPER = "#010204"
_COLOUR: dict[Role, str] = {"teacher": "#010205", "student": "#010206"}
_CSS = {
    _INK: "currentColor",
    _PAPER: "var(--surface)",
    _COLOUR["teacher"]: "var(--teacher)",
    _COLOUR["student"]: "var(--student)",
    "#010207": "var(--third)",
    "#010208": "var(--fourth)",
}
# Runs, where several are compared.
_RUNS = tuple(f"#0102{number:02x}" for number in range(16, 24))
_CSS |= {colour: f"var(--run-{number})" for number, colour in enumerate(_RUNS)}
# The two models differ in more than colour: in print and to the colour-blind too.
_DASH: dict[Role, str | tuple[int, tuple[float, ...]]] = {"teacher": (0, (5, 1.5)), "student": "-"}
_RUNTIME_MARKERS = "osD^vPX*"
_TERM_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
_POINTS = 400
# For the time of one plot; whatever the user's matplotlibrc says, no text is run as TeX or maths.
_SETTINGS: Any = {
    "text.usetex": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "edgekd",
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
}


@dataclass(frozen=True)
class Plot:
    """An inline SVG over its table; `rows` are texts, the first column names the row."""

    title: str
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Point:
    """One deployed file: p50 in seconds against test accuracy in [0, 1], with 95 % intervals.

    `series` is a role or a run and gives the colour, `kind` the shape of the mark.
    """

    series: str
    kind: str
    latency: float
    latency_interval: Interval
    accuracy: float
    accuracy_interval: Interval
    hollow: bool = False


@dataclass(frozen=True)
class Trend:
    """A series over runs: positions on the axis, values in base units, intervals where known.

    `levels` are (first index, index after the last, level); a level begins where it changed.
    """

    label: str
    positions: Sequence[int]
    values: Sequence[float]
    intervals: Sequence[Interval | None]
    levels: Sequence[tuple[int, int, float]]


@dataclass(frozen=True)
class Bar:
    """Shares in [0, 1] of both models under one name; None where a model has none of it."""

    name: str
    teacher: float | None
    student: float | None


@dataclass(frozen=True)
class Work:
    """A model, or one operator of it: FLOP per byte and FLOP/s; `share` of its model's time."""

    role: Role
    label: str
    intensity: float
    speed: float
    share: float = 1.0


@dataclass(frozen=True)
class Roof:
    """What a device reaches at most: FLOP/s by precision, and bytes/s by what they come from."""

    flops: Mapping[str, float]
    bandwidths: Mapping[str, float]


@dataclass(frozen=True)
class ClassAccuracy:
    """A class with the accuracies of both models on its test samples; None without samples."""

    name: str
    teacher: float | None
    student: float | None


@dataclass(frozen=True)
class Difference:
    """A difference of two shares under a name, with its 95 % interval."""

    name: str
    value: float
    interval: Interval


@matplotlib.rc_context(_SETTINGS)
def pareto(
    points: Sequence[Point],
    *,
    name: str,
    title: str,
    cost: str = "p50 latency",
    dimension: Dimension = "time",
    split: str = "test",
    score: str = "accuracy",
) -> str:
    """Accuracy, or another `score`, against latency with error bars; the line joins what nothing else beats.

    With another `cost`, the points' latencies are that, in the base unit of `dimension`.
    """
    figure, axes = _figure(440, 320)
    markers, colours = _markers(points), _colours(points)
    front = _front(points)
    axes.plot(
        [p.latency for p in front], [p.accuracy for p in front],
        color=_INK, alpha=0.45, linewidth=1, linestyle=(0, (2, 2)), drawstyle="steps-post", zorder=1,
    )  # fmt: skip
    for p in points:
        axes.errorbar(
            p.latency,
            p.accuracy,
            xerr=_reach(p.latency, p.latency_interval),
            yerr=_reach(p.accuracy, p.accuracy_interval),
            marker=markers[p.kind],
            markersize=8,
            markerfacecolor=_PAPER if p.hollow else colours[p.series],
            markeredgecolor=colours[p.series] if p.hollow else _PAPER,
            markeredgewidth=1.8 if p.hollow else 0.8,
            color=colours[p.series],
            elinewidth=1.3,
            capsize=3,
            zorder=3,
        )
    ends = [bound for p in points for bound in (p.latency, *p.latency_interval) if bound > 0]
    _latency_axis(axes, min(ends) / 1.25, max(ends) * 1.25, dimension)
    axes.set_xlabel(f"{cost} (log scale)")
    axes.set_ylabel(f"{split} {score}")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.margins(y=0.12)
    series = [
        Line2D([], [], color=colour, linewidth=6, solid_capstyle="round", label=_label(name))
        for name, colour in colours.items()
    ]
    kinds = [
        Line2D([], [], color=_INK, marker=marker, linestyle="", markersize=7, label=_label(kind))
        for kind, marker in markers.items()
    ]
    _legend(figure, series + kinds)
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def distribution(samples: Mapping[Role, np.ndarray], *, name: str, title: str) -> str:
    """The share of calls done within a time, for each model: its empirical distribution."""
    figure, axes = _figure(440, 280)
    ends: list[float] = []
    for role, values in samples.items():
        latency, share = _ecdf(values)
        axes.plot(
            latency, share, color=_COLOUR[role], linestyle=_DASH[role], linewidth=2,
            label=role, drawstyle="steps-post",
        )  # fmt: skip
        # The slowest call of thousands would squeeze the rest; the table has it.
        ends += [float(values.min()), float(np.quantile(values, 0.999))]
    for line in (0.5, 0.9, 0.99):
        axes.axhline(line, color=_INK, alpha=0.28, linewidth=0.8, zorder=1)
    _latency_axis(axes, min(ends) / 1.12, max(ends) * 1.12)
    axes.set_xlabel("latency (log scale)")
    axes.set_ylabel("share of calls")
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 0.99], ["0 %", "25 %", "p50", "75 %", "p90", "p99"])
    axes.grid(axis="y", visible=False)
    _legend(figure, axes.get_legend_handles_labels()[0])
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def trends(
    series: Sequence[Trend], *, ticks: Sequence[str], dimension: Dimension, name: str, title: str
) -> str:
    """Values run by run with intervals; a dashed line where a level changed, a bar along each level.

    `ticks` says what to call every position, from the first; few are shown.
    """
    figure, axes = _figure(640, 280)
    colours = [_COLOUR["student"], _COLOUR["teacher"], "#010207", "#010208"]
    handles = []
    for i, trend in enumerate(series):
        colour, marker = colours[i % len(colours)], _RUNTIME_MARKERS[i % len(_RUNTIME_MARKERS)]
        known = [j for j, interval in enumerate(trend.intervals) if interval is not None]
        axes.vlines(
            [trend.positions[j] for j in known],
            [trend.intervals[j][0] for j in known],  # type: ignore[index]
            [trend.intervals[j][1] for j in known],  # type: ignore[index]
            color=colour, alpha=0.5, linewidth=1.2, zorder=2,
        )  # fmt: skip
        axes.plot(
            trend.positions, trend.values, color=colour, marker=marker, markersize=4.5,
            markeredgecolor=_PAPER, markeredgewidth=0.4, linewidth=1, zorder=3,
        )  # fmt: skip
        for start, end, level in trend.levels:
            first, last = trend.positions[start], trend.positions[end - 1]
            axes.plot([first, last], [level, level], color=colour, alpha=0.3, linewidth=6, zorder=1)
            if start:
                between = (trend.positions[start - 1] + first) / 2
                axes.axvline(between, color=colour, linewidth=1.5, linestyle=(0, (4, 2)), zorder=1)
        handles.append(
            Line2D([], [], color=colour, marker=marker, markersize=6, label=_label(trend.label, 60))
        )
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: _percent(value) if dimension == "share"
                      else format_quantity(value, dimension))
    )  # fmt: skip
    step = max(1, -(-len(ticks) // 6))
    axes.set_xticks(range(0, len(ticks), step), [_label(tick) for tick in ticks[::step]])
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.margins(y=0.15)
    _legend(figure, handles, columns=1 if max(len(t.label) for t in series) > 30 else 2)
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def per_class(
    classes: Sequence[ClassAccuracy], *, name: str, title: str, score: str = "accuracy"
) -> str:
    """One line per class from the teacher's accuracy, or another `score`, to the student's."""
    figure, axes = _figure(440, 80 + 21 * len(classes))
    for y, c in enumerate(classes):
        if c.teacher is not None and c.student is not None:
            axes.plot([c.teacher, c.student], [y, y], color=_INK, alpha=0.35, linewidth=2, zorder=2)
        # The teacher's ring is the larger, so that equal accuracies show both.
        for role, accuracy, size in (("teacher", c.teacher, 10), ("student", c.student, 6)):
            if accuracy is not None:
                axes.plot(
                    accuracy, y,
                    marker="o", markersize=size, linestyle="", markeredgewidth=1.8,
                    markerfacecolor="none" if role == "teacher" else _COLOUR["student"],
                    markeredgecolor=_COLOUR["teacher" if role == "teacher" else "student"],
                    clip_on=False, zorder=3 if role == "teacher" else 4,
                )  # fmt: skip
    axes.set_yticks(range(len(classes)), [_label(c.name, 22) for c in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.06)
    axes.set_xlabel(f"test {score}")
    ring = Line2D(
        [], [], color=_COLOUR["teacher"], marker="o", markersize=9, markerfacecolor="none",
        markeredgewidth=1.8, linestyle="", label="teacher",
    )  # fmt: skip
    dot = Line2D(
        [], [], color=_COLOUR["student"], marker="o", markersize=6, linestyle="", label="student"
    )
    _legend(figure, [ring, dot])
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def differences(rows: Sequence[Difference], *, name: str, title: str) -> str:
    """One interval per name around a line at no difference; filled where it misses the line."""
    figure, axes = _figure(440, 60 + 21 * len(rows))
    axes.axvline(0, color=_INK, alpha=0.5, linewidth=1)
    for y, row in enumerate(rows):
        sure = row.interval[0] > 0 or row.interval[1] < 0
        axes.errorbar(
            row.value, y,
            xerr=_reach(row.value, row.interval), marker="o", markersize=6, elinewidth=1.4,
            capsize=3, color=_COLOUR["student"], markeredgewidth=1.6,
            markerfacecolor=_COLOUR["student"] if sure else _PAPER, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_label(row.name, 22) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:+.4g}".replace("-", "−"))
    )
    axes.set_xlabel("points, student less teacher")
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def curves(role: Role, history: History, *, name: str, title: str, score: str = "accuracy") -> str:
    """Every weighted loss term by name (log scale), and validation accuracy, or another `score`, below."""
    figure = _canvas(440, 400)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    epochs = _thinned(history)
    numbers = [history.epochs[i].epoch + 1 for i in epochs]
    names = list(dict.fromkeys(name for i in epochs for name in history.epochs[i].losses))
    several = len(names) > 1
    if several:
        totals = [sum(history.epochs[i].losses.values()) for i in epochs]
        upper.plot(numbers, totals, color=_INK, linewidth=1, alpha=0.7, label="total")
    for position, name in enumerate(names):
        values = [history.epochs[i].losses.get(name, float("nan")) for i in epochs]
        upper.plot(
            numbers, values, color=_COLOUR[role], linewidth=2, label=_label(name, 30),
            linestyle=_TERM_DASHES[position % len(_TERM_DASHES)],
            marker=None if len(numbers) > 1 else "o",
        )  # fmt: skip
    lower.plot(
        numbers, [history.epochs[i].validation_accuracy for i in epochs],
        color=_COLOUR[role], linewidth=2, marker=None if len(numbers) > 1 else "o",
    )  # fmt: skip
    positive = [v for i in epochs for v in history.epochs[i].losses.values()]
    if positive and min(positive) > 0 and max(positive) > 20 * min(positive):
        upper.set_yscale("log")
        upper.yaxis.set_minor_locator(NullLocator())
        upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    kept = _kept(history)
    for axes in (upper, lower):
        _style(axes)
        if kept is not None:
            axes.axvline(kept + 1, color=_INK, alpha=0.45, linewidth=1, linestyle=(0, (2, 2)))
    upper.set_ylabel("weighted loss" if upper.get_yscale() != "log" else "weighted loss (log)")
    lower.set_ylabel(f"validation {score}")
    lower.yaxis.set_major_formatter(FuncFormatter(_percent))
    lower.yaxis.set_major_locator(MaxNLocator(4))
    lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    lower.set_xlabel("epoch")
    if kept is not None:
        marker = Line2D(
            [], [], color=_INK, alpha=0.6, linewidth=1, linestyle=(0, (2, 2)), label="kept epoch"
        )
        _legend(figure, [*upper.get_legend_handles_labels()[0], marker])
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def trade_off(aware: AccuracyAware, *, name: str, title: str) -> str:
    """Accuracy over size, one mark per evaluation; the kept one filled, float32 a ring."""
    figure, axes = _figure(440, 280)
    sizes = [point.size for point in aware.curve]
    accuracies = [point.accuracy for point in aware.curve]
    colour = _COLOUR["student"]
    axes.plot(sizes, accuracies, color=colour, alpha=0.35, linewidth=1.5, zorder=2)
    least = aware.float32 - aware.max_drop
    axes.axhline(least, color=_INK, alpha=0.6, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for point in aware.curve:
        axes.plot(
            point.size, point.accuracy, marker="o", markersize=8, linestyle="",
            markerfacecolor=colour if point.reverted == aware.reverted else "none",
            markeredgecolor=colour, markeredgewidth=1.8, clip_on=False, zorder=4,
        )  # fmt: skip
        axes.annotate(
            str(point.reverted), (point.size, point.accuracy), xytext=(0, -16),
            textcoords="offset points", ha="center", color=_INK, fontsize=10,
        )  # fmt: skip
    axes.plot(
        aware.size_float32, aware.float32, marker="s", markersize=8, linestyle="",
        markerfacecolor="none", markeredgecolor=_INK, markeredgewidth=1.8, zorder=3,
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_quantity(value, "bytes")))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.margins(x=0.12, y=0.2)
    axes.set_xlabel("file size")
    axes.set_ylabel("validation accuracy")
    _legend(figure, [
        Line2D([], [], color=colour, marker="o", linestyle="", label="layers in float32"),
        Line2D([], [], color=_INK, marker="s", linestyle="", markerfacecolor="none", label="float32"),
        Line2D([], [], color=_INK, alpha=0.6, linestyle=(0, (4, 3)), label="least accuracy"),
    ])  # fmt: skip
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def shares(bars: Sequence[Bar], *, name: str, title: str, axis: str) -> str:
    """Two bars for every name, the teacher's hatched above the student's."""
    figure, axes = _figure(440, 90 + 34 * len(bars))
    for y, bar in enumerate(bars):
        for role, value, offset in (("teacher", bar.teacher, -0.2), ("student", bar.student, 0.2)):
            if value is not None:
                axes.barh(
                    y + offset, value, height=0.34, linewidth=1.2,
                    facecolor="none" if role == "teacher" else _COLOUR["student"],
                    edgecolor=_COLOUR["teacher" if role == "teacher" else "student"],
                    hatch="////" if role == "teacher" else None,
                )  # fmt: skip
    axes.set_yticks(range(len(bars)), [_label(bar.name, 26) for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel(axis)
    present = [role for role in ROLES if any(getattr(bar, role) is not None for bar in bars)]
    keys = [
        Patch(
            facecolor="none" if role == "teacher" else _COLOUR[role],
            edgecolor=_COLOUR[role],
            hatch="////" if role == "teacher" else None,
            label=role,
        )
        for role in present
    ]
    _legend(figure, keys)
    return _svg(figure, name, title)


@matplotlib.rc_context(_SETTINGS)
def roofline(work: Sequence[Work], roof: Roof | None, *, name: str, title: str) -> str:
    """Speed against intensity, both logarithmic, below what the device reaches at most."""
    figure, axes = _figure(440, 340)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low = min(w.intensity for w in work) / 2
    high = max(w.intensity for w in work) * 2
    if roof:
        # As far as the corner of the lowest roof, so that both kinds of limit are seen.
        corner = min(roof.flops.values()) / min(roof.bandwidths.values())
        high = max(high, 3 * corner)
        xs = np.geomspace(low, high, 200)
        top = max(roof.flops.values())
        for dash, (label, bandwidth) in zip(_TERM_DASHES, roof.bandwidths.items(), strict=False):
            axes.plot(
                xs, np.minimum(xs * bandwidth, top), color=_INK, alpha=0.6, linewidth=1.2,
                linestyle=dash, label=_label(label, 30),
            )  # fmt: skip
        for label, flops in roof.flops.items():
            axes.axhline(flops, color=_INK, alpha=0.35, linewidth=1)
            axes.annotate(
                _label(label), (high, flops), ha="right", va="bottom", color=_INK, fontsize=10
            )
    for w in sorted(work, key=lambda w: w.share):
        whole = w.share == 1
        axes.plot(
            w.intensity, w.speed,
            marker="D" if whole else "o", linestyle="", zorder=4 if whole else 3,
            markersize=10 if whole else 3 + 8 * w.share**0.5, markeredgewidth=1.6,
            markerfacecolor="none" if w.role == "teacher" else _COLOUR[w.role],
            markeredgecolor=_COLOUR[w.role], alpha=1 if whole else 0.75,
        )  # fmt: skip
    axes.set_xlim(low, high)
    for side in (axes.xaxis, axes.yaxis):
        side.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{format_quantity(value, 'flop')}/s")
    )
    axes.set_xlabel("FLOP per byte (log scale)")
    keys = [
        Line2D(
            [], [], color=_COLOUR[role], marker="D", linestyle="", markersize=8, label=role,
            markerfacecolor="none" if role == "teacher" else _COLOUR[role],
        )
        for role in ROLES if any(w.role == role for w in work)
    ]  # fmt: skip
    _legend(figure, [*keys, *axes.get_legend_handles_labels()[0]])
    return _svg(figure, name, title)


def _canvas(width: int, height: int) -> Figure:
    """`width` and `height` in CSS pixels: one unit of the SVG is one pixel of the page."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def _figure(width: int, height: int) -> tuple[Figure, Axes]:
    figure = _canvas(width, height)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.grid(visible=True, which="major", color=_INK, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=11, length=3, width=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(_INK)
        spine.set_alpha(0.5)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
        label.set_fontsize(11)


def _legend(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    # As many columns as fit the width, at about 6.5 units a letter.
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, min(len(handles), columns, int(440 / (45 + 6.5 * longest)))),
        frameon=False,
        fontsize=11,
        labelcolor=_INK,
        handlelength=2.2,
        columnspacing=1.4,
        borderaxespad=0,
    )


def _latency_axis(axes: Axes, low: float, high: float, dimension: Dimension = "time") -> None:
    """A log axis with times as people write them, or other quantities; few enough labels for a phone."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = [m * 10.0**e for e in range(-10, 14) for m in (1, 2, 5)]
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if f"{tick:.0e}"[0] == "1"] or ticks[::2]
    if len(ticks) < 3:
        ticks = [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_quantity(value, dimension))
    )


def _percent(value: float, _: int | None = None) -> str:
    return f"{value * 100:.4g} %"


def _markers(points: Sequence[Point]) -> dict[str, str]:
    kinds = dict.fromkeys(p.kind for p in points)
    return {k: _RUNTIME_MARKERS[i % len(_RUNTIME_MARKERS)] for i, k in enumerate(kinds)}


def _colours(points: Sequence[Point]) -> dict[str, str]:
    """Of the roles where they are the series, in their order; else one after another."""
    found = dict.fromkeys(p.series for p in points)
    if found.keys() <= _COLOUR.keys():
        return {role: _COLOUR[role] for role in ROLES if role in found}
    return {series: _RUNS[i % len(_RUNS)] for i, series in enumerate(found)}


def _front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, from the fastest to the most accurate."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.latency, -p.accuracy)):
        if not front or p.accuracy > front[-1].accuracy:
            front.append(p)
    return front


def _reach(value: float, interval: Interval) -> list[list[float]]:
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _ecdf(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values and the share at or below each; at most `_POINTS`, evenly spaced in rank."""
    ordered = np.sort(values)
    rank = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _POINTS)).round())
    rank = rank.astype(int)
    return ordered[rank], (rank + 1) / len(ordered)


def _thinned(history: History) -> list[int]:
    count = len(history.epochs)
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, _POINTS)).round()})


def _kept(history: History) -> int | None:
    """The number of the epoch whose weights were kept."""
    if 0 <= history.best < len(history.epochs):
        return history.epochs[history.best].epoch
    return None


def _label(text: str, length: int = 24) -> str:
    """A name as a plot can show it: one line, no control characters, not too long."""
    plain = one_line(text)
    # Matplotlib leaves out of a legend what starts with an underscore.
    plain = f"\u200b{plain}" if plain.startswith("_") else plain
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element with an accessible name, transparent, without metadata."""
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    with warnings.catch_warnings():
        # The browser has glyphs that the font used for measuring has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return _inline(buffer.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> str:
    """Rewrite what Matplotlib wrote so that several plots fit one page and follow its theme."""
    root = ElementTree.fromstring(svg)
    used = dict.fromkeys(re.findall(r"#([\w-]+)", " ".join(_references(root))))
    short = {identifier: f"{name}-{number}" for number, identifier in enumerate(used)}
    _drop(root, {"metadata", "style"})
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if attributes.get("id") not in short:
            attributes.pop("id", None)
        written = {key: _attribute(key, value, short) for key, value in attributes.items()}
        element.attrib.clear()
        element.attrib.update({key: value for key, value in written.items() if value})
        if element.tag != "text":
            element.text = None
        element.tail = None
    _unwrap(root)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title"})
    heading = ElementTree.Element("title", id=f"{name}-title")
    heading.text = _label(title, 200)
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> list[str]:
    """The attributes that may point at another element of the plot."""
    return [
        value
        for element in root.iter()
        for key, value in element.attrib.items()
        if key.endswith("href") or "url(" in value
    ]


def _drop(root: ElementTree.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in tags:
                parent.remove(child)


def _unwrap(parent: ElementTree.Element) -> None:
    """Put the children of groups that say nothing in the groups' place, and drop empty ones."""
    children = []
    for child in list(parent):
        _unwrap(child)
        bare = child.tag in ("g", "defs") and not child.attrib
        if not bare or (child.tag == "defs" and len(child)):
            children.append(child)
        else:
            children.extend(child)
    parent[:] = children


# What the style sheet says of every plot.
_DEFAULT_STYLES = re.compile(
    r"stroke-line(cap|join): \w+|font-family: .*|font-size: 11px|text-anchor: start|stroke-width: 1"
)


def _attribute(key: str, value: str, short: Mapping[str, str]) -> str:
    """Ids are made the plot's own; stand-in colours become CSS, and the font is the page's.

    Lengths are rounded to what can be seen; empty when nothing is left to say.
    """
    match key:
        case "id":
            return short[value]
        case "href":
            return f"#{short[value[1:]]}"
        case "clip-path":
            return re.sub(r"#([\w-]+)", lambda match: f"#{short[match[1]]}", value)
        case "transform" if value.startswith("rotate(-0 "):
            return ""
        case "d" | "x" | "y" | "width" | "height" | "transform":
            return re.sub(r"\s+", " ", re.sub(r"-?\d+\.\d+", _rounded, value)).strip()
        case "style":
            kept = [p for p in value.split("; ") if not _DEFAULT_STYLES.fullmatch(p)]
            value = ";".join(kept).replace(": ", ":")
            for stand_in, css in _CSS.items():
                value = value.replace(stand_in, css)
            return re.sub(r"url\(#([\w-]+)", lambda match: f"url(#{short[match[1]]}", value)
    return value


def _rounded(match: re.Match[str]) -> str:
    """A tenth of a pixel; a hundredth of the small numbers that marks are drawn with."""
    number = float(match[0])
    text = f"{number:.1f}" if abs(number) >= 20 else f"{number:.2f}"
    return text.rstrip("0").rstrip(".")
