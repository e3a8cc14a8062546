"""Entries as series: only what compares, in the order of time, and where its level moved."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np

from edgekd.config.schema import DIMENSIONS
from edgekd.config.units import format_quantity
from edgekd.history.changepoints import FEWEST, Shift, change_points, shift
from edgekd.history.entry import Entry, Key

# Differences of these are read as such (points); of others as a ratio.
_ABSOLUTE = ("points", "share")
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Filter:
    """Which entries are looked at; None is all of them, except of labels: only those without one.

    `label` "*" is every one. `limit` is of the newest of each series.
    """

    run: str | None = None
    metric: str | None = None
    label: str | None = None
    target: str | None = None
    runtime: str | None = None
    variant: str | None = None
    branch: str | None = None
    since: datetime | None = None
    limit: int | None = None

    def admits(self, entry: Entry) -> bool:
        """Whether it is what every given field says; the store saw to `since` and `label`."""
        names = ("run", "metric", "target", "runtime", "variant", "branch")
        wanted = ((getattr(self, name), getattr(entry, name)) for name in names)
        return all(want is None or want == is_ for want, is_ in wanted)


@dataclass(frozen=True)
class Change:
    """A level that moved: `first` is the first point of the new level, `last` that before it.

    `before` and `after` are medians of the levels on either side, of `points` measurements each;
    `p` is how often chance alone makes a step as clear somewhere in the series.
    """

    first: Entry
    last: Entry
    before: float
    after: float
    shift: Shift
    p: float
    points: tuple[int, int]

    @property
    def better(self) -> bool | None:
        """Whether the new level is the better one; None where that is not known."""
        higher = self.first.key.higher_is_better
        if higher is None or self.before == self.after:
            return None
        return (self.after > self.before) == higher

    @property
    def size(self) -> str:
        """Such as "+5.1 % [+4.2, +6.0]" or "−0.52 points [−0.70, −0.31]"."""
        values = (self.shift.value, *self.shift.interval)
        if self.shift.relative:
            return _with_interval([100 * (value - 1) for value in values], "%")
        if self.first.key.dimension in _ABSOLUTE:
            return _with_interval([100 * value for value in values], "points")
        value, low, high = (f"{value:+.3g}".replace("-", "−") for value in values)
        return f"{value} [{low}, {high}]"

    @property
    def causes(self) -> list[str]:
        """What else is known to differ between the two points."""
        found = []
        for name in ("runtime_version", "edgekd"):
            then, now = getattr(self.last, name), getattr(self.first, name)
            if then != now:
                label = self.first.runtime if name == "runtime_version" else name
                found.append(f"{label} {then or 'unknown'} → {now or 'unknown'}")
        if self.last.config != self.first.config:
            found.append("the configuration differs")
        same = self.first.commit is not None and self.last.commit == self.first.commit
        if same and not self.first.dirty and not self.last.dirty:
            found.append("the same commit before and after: it may be the machine, not the code")
        return found


@dataclass(frozen=True)
class Series:
    """The points of one metric of one model in one place, oldest first."""

    key: Key
    entries: tuple[Entry, ...]

    @cached_property
    def values(self) -> np.ndarray:
        """(n,) in base units."""
        return np.array([entry.value for entry in self.entries])

    @property
    def searched(self) -> bool:
        """Whether changes are looked for: there are enough points, and they share one reference.

        Figures against a baseline move with the baseline as well.
        """
        return len(self.entries) >= FEWEST and not self.key.metric.endswith("_vs_baseline")

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Where the level moved, oldest first."""
        if not self.searched:
            return ()
        found = change_points(self.values)
        cuts = [0, *(index for index, _ in found), len(self.values)]
        return tuple(
            self._change(start, cut, end, p)
            for start, (cut, p), end in zip(cuts, found, cuts[2:], strict=False)
        )

    def _change(self, start: int, cut: int, end: int, p: float) -> Change:
        before, after = self.values[start:cut], self.values[cut:end]
        relative = self.key.dimension not in _ABSOLUTE and min(before.min(), after.min()) > 0
        return Change(
            first=self.entries[cut],
            last=self.entries[cut - 1],
            before=float(np.median(before)),
            after=float(np.median(after)),
            shift=shift(before, after, relative=bool(relative)),
            p=p,
            points=(len(before), len(after)),
        )

    @property
    def levels(self) -> list[tuple[int, int, float]]:
        """(first index, index after the last, median) of every level."""
        cuts = list(itertools.accumulate(change.points[0] for change in self.changes))
        return [
            (start, end, float(np.median(self.values[start:end])))
            for start, end in zip([0, *cuts], [*cuts, len(self.values)], strict=True)
        ]

    @property
    def step(self) -> str:
        """The newest value against the one before it, "" for the first. Mostly that is noise."""
        if len(self.entries) < 2:
            return ""
        then, now = map(float, self.values[-2:])
        if now == then:
            return "="
        if self.key.dimension in _ABSOLUTE:
            return f"{_signed(100 * (now - then), 2)} points"
        return f"{_signed(100 * (now / then - 1), 1)} %" if then > 0 else ""

    def sparkline(self, width: int = 20) -> str:
        """The newest `width` values as bars between the smallest and the largest of them."""
        newest = self.values[-width:]
        low, high = float(newest.min()), float(newest.max())
        if low == high:
            return _BARS[3] * len(newest)
        heights = np.floor((newest - low) / (high - low) * (len(_BARS) - 1) + 0.5).astype(int)
        return "".join(_BARS[height] for height in heights)


def group(entries: Iterable[Entry], wanted: Filter) -> list[Series]:
    """The series of the entries that the filter admits, by run, place and metric."""
    found: dict[Key, list[Entry]] = {}
    for entry in entries:
        if wanted.admits(entry):
            found.setdefault(entry.key, []).append(entry)
    newest = -wanted.limit if wanted.limit else None
    return [Series(key, tuple(found[key][newest:])) for key in sorted(found, key=_order)]


def titles(series: Iterable[Series]) -> dict[Key, str]:
    """Place by series; with what tells them apart where several have the same place and metric."""
    keys = [s.key for s in series]
    return {key: ", ".join((key.place, *_distinctions(key, keys))) for key in keys}


def _distinctions(key: Key, keys: list[Key]) -> Iterator[str]:
    mine = (key.run, key.figure, key.place)
    rivals = [k for k in keys if (k.run, k.figure, k.place) == mine]
    texts = {
        "device": key.device or "unknown device",
        "threads": f"{key.threads} thread{'' if key.threads == 1 else 's'}",
        "precision": key.precision or "unknown precision",
        "batch_size": f"batch {key.batch_size}",
        "provenance": key.provenance,
    }
    for name, text in texts.items():
        if len({getattr(rival, name) for rival in rivals}) > 1:
            yield text


def value_text(entry: Entry, value: float | None = None) -> str:
    """The entry's value, or another one of its metric, with its unit."""
    return format_quantity(entry.value if value is None else value, entry.key.dimension)


def interval_text(entry: Entry) -> str:
    """ "[2.10 ms, 2.16 ms]", or nothing."""
    if entry.interval is None:
        return ""
    low, high = (value_text(entry, bound) for bound in entry.interval)
    return f"[{low}, {high}]"


def _order(key: Key) -> tuple[str, ...]:
    """By run and place, metrics as the schema lists them; what belongs to no target first."""
    known = list(DIMENSIONS)
    position = known.index(key.metric) if key.metric in known else len(known)
    parts = (key.run, key.target, key.runtime, key.variant, f"{position:03}", *key)
    return tuple("" if part is None else str(part) for part in parts)


def _with_interval(values: Iterable[float], unit: str) -> str:
    value, low, high = values
    digits = 1 if abs(value) >= 1 else 2
    return f"{_signed(value, digits)} {unit} [{_signed(low, digits)}, {_signed(high, digits)}]"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
