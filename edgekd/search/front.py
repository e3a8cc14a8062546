"""What no other point beats, and the same drawn with letters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgekd.config.units import format_quantity
from edgekd.search.records import Point

# Costs that accuracy is drawn against, and what they are counted in.
AXES = {"latency_p50": "time", "memory": "bytes", "size": "bytes"}
_WIDTH, _HEIGHT = 60, 12


def best(points: Sequence[Point], metric: str) -> list[Point]:
    """The points that no other beats in both accuracy and this cost, from the cheapest on."""
    known = [p for p in points if metric in p.costs]
    front: list[Point] = []
    for point in sorted(known, key=lambda p: (p.costs[metric], -p.accuracy.value)):
        if not front or point.accuracy.value > front[-1].accuracy.value:
            front.append(point)
    return front


def marked(points: Sequence[Point]) -> tuple[Point, ...]:
    """The same points with the fronts that they are on."""
    fronts = {metric: {id(p) for p in best(points, metric)} for metric in AXES}
    return tuple(
        p.model_copy(update={"front": tuple(m for m in AXES if id(p) in fronts[m])}) for p in points
    )


def drawn(points: Sequence[Point], limit: float | None = None) -> str:
    """Validation accuracy against latency as text: ● on the front, ○ others, ┊ the budget's limit."""
    known = [p for p in points if "latency_p50" in p.costs]
    if not known:
        return ""
    front = {id(p) for p in best(known, "latency_p50")}
    seconds = [p.costs["latency_p50"] for p in known] + ([limit] if limit else [])
    across = _scale([math.log(max(s, 1e-12)) for s in seconds], _WIDTH - 1)
    accuracies = [p.accuracy.value for p in known]
    up = _scale(accuracies, _HEIGHT - 1)
    rows = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    if limit:
        for row in rows:
            row[across(math.log(limit))] = "┊"
    for p in sorted(known, key=lambda p: id(p) in front):
        x = across(math.log(max(p.costs["latency_p50"], 1e-12)))
        rows[_HEIGHT - 1 - up(p.accuracy.value)][x] = "●" if id(p) in front else "○"
    top, bottom = f"{max(accuracies):7.2%}", f"{min(accuracies):7.2%}"
    labels = [top, *[" " * 7] * (_HEIGHT - 2), bottom]
    low, high = (format_quantity(end, "time") for end in (min(seconds), max(seconds)))
    lines = [f"{label} │{''.join(row)}" for label, row in zip(labels, rows, strict=True)]
    lines.append(f"{' ' * 8}└{'─' * _WIDTH}")
    lines.append(f"{' ' * 9}{low}{' ' * max(1, _WIDTH - len(low) - len(high))}{high}")
    return "\n".join(line.rstrip() for line in lines)


def _scale(values: Sequence[float], last: int) -> Callable[[float], int]:
    low, high = min(values), max(values)
    if high <= low:
        return lambda _: last // 2
    return lambda value: round((value - low) / (high - low) * last)
