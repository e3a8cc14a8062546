"""Several runs side by side: figures, what was configured otherwise, and what does not compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import UsageError
from edgekd.gate.baseline import conditions
from edgekd.pipeline.run import Run
from edgekd.report.comparison import Change, Value, Words, change_of, deployed_accuracy, points_text
from edgekd.report.contents import Contents, arrays, read
from edgekd.results import ExportedFile, Interval, Measurement, Role, Variant
from edgekd.statistics import paired_difference
from edgekd.tasks.task import CLASSIFICATION

MOST_RUNS = 8
_LONGEST = 200


@dataclass(frozen=True)
class Place:
    """What is the same on both sides of a comparison but the run."""

    target: str | None
    runtime: str | None
    format: str
    role: Role
    variant: Variant

    @property
    def title(self) -> str:
        """ "int8 student in openvino on local"."""
        model = self.role if self.variant == "f32" else f"{self.variant} {self.role}"
        inside = f"{model} in {self.runtime or self.format}"
        return f"{inside} on {self.target}" if self.target else inside


@dataclass(frozen=True)
class Side:
    """One run under a name of its own in this comparison."""

    name: str
    path: Path
    contents: Contents

    def measurement(self, place: Place) -> Measurement | None:
        """What was measured there."""
        measured = self.contents.profile.measurements if self.contents.profile else ()
        return next((m for m in measured if _measured_at(m) == place), None)

    def accuracy(self, place: Place) -> Value | None:
        """Test accuracy of that file in that runtime."""
        m = self.measurement(place)
        if m is not None:
            return deployed_accuracy(self.contents, m)
        wanted = (place.runtime, place.format, place.role, place.variant)
        for p in self.contents.verify.files if self.contents.verify else ():
            if (p.runtime, p.format, p.role, p.variant) == wanted:
                return Value(p.accuracy.value, "share", p.accuracy.interval)
        return None

    def file(self, place: Place) -> ExportedFile | None:
        """The file itself."""
        wanted = (place.format, place.role, place.variant)
        return next(
            (f for f in self.contents.files if (f.format, f.role, f.variant) == wanted), None
        )

    @cached_property
    def split(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Indices and labels of the test samples, or None when they were not kept."""
        found = _arrays(self.path, "indices", "labels")
        return (found[0], found[1]) if found else None

    def right(self, place: Place) -> np.ndarray | None:
        """Which test samples the file at a place answers rightly."""
        name = place.role if place.variant == "f32" else f"{place.role}-{place.variant}"
        found = _arrays(self.path, "labels", f"{place.runtime}/{name}")
        if found is None or found[1].ndim != 2 or found[0].shape != found[1].shape[:1]:
            return None
        if self.contents.task != CLASSIFICATION:
            return None
        return np.asarray(found[1].argmax(1) == found[0])


@dataclass(frozen=True)
class Line:
    """One figure of every run; changes are against the first run, None for the first itself."""

    label: str
    values: tuple[Value | None, ...]
    changes: tuple[Change | None, ...]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """The figures of one place."""

    place: Place
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Setting:
    """A configuration key that is not the same everywhere; values as JSON, "–" where it is absent."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class SideBySide:
    """Everything that the terminal, the page and the JSON document show."""

    sides: tuple[Side, ...]
    groups: tuple[Group, ...]
    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Ready for JSON; base units (seconds, bytes, shares) throughout."""
        return {
            "schema": 1,
            "runs": [
                {
                    "name": side.name,
                    "path": str(side.path),
                    "command": side.contents.manifest.command,
                    "missing": list(side.contents.missing),
                }
                for side in self.sides
            ],
            "groups": [asdict(group) for group in self.groups],
            "settings": [asdict(setting) for setting in self.settings],
            "warnings": list(self.warnings),
        }


def side_by_side(paths: Sequence[Path]) -> SideBySide:
    """Read the runs and put them beside each other, in the order given.

    Raises UsageError for fewer than 2 runs or more than 8, one that is given twice, and one that
    cannot be read.
    """
    if not 2 <= len(paths) <= MOST_RUNS:
        raise UsageError(f"compares 2 to {MOST_RUNS} runs, not {len(paths)}", where="--compare")
    resolved = [path.resolve() for path in paths]
    twice = next((path for path in resolved if resolved.count(path) > 1), None)
    if twice is not None:
        raise UsageError("is given twice", where=str(twice))
    sides = tuple(
        Side(name, path, read(Run.open(path)))
        for name, path in zip(_names(resolved), resolved, strict=True)
    )
    places = dict.fromkeys(place for side in sides for place in _places(side.contents))
    groups = (Group(place, tuple(_lines(sides, place))) for place in places)
    return SideBySide(
        sides, tuple(groups), tuple(_settings(sides)), tuple(_warnings(sides, list(places)))
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells them apart."""
    for parts in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _places(contents: Contents) -> Iterator[Place]:
    """Measured places first, then what is only verified, then files."""
    measured = contents.profile.measurements if contents.profile else ()
    yield from map(_measured_at, measured)
    known = {(m.runtime, m.format, m.role, m.variant) for m in measured}
    for p in contents.verify.files if contents.verify else ():
        if (p.runtime, p.format, p.role, p.variant) not in known:
            yield Place(None, p.runtime, p.format, p.role, p.variant)
    if contents.verify is None:
        for file in contents.files:
            yield Place(None, None, file.format, file.role, file.variant)


def _measured_at(m: Measurement) -> Place:
    return Place(m.target, m.runtime, m.format, m.role, m.variant)


def _lines(sides: Sequence[Side], place: Place) -> Iterator[Line]:
    measured = [side.measurement(place) for side in sides]
    accuracies = tuple(side.accuracy(place) for side in sides)
    if any(accuracies):
        changes = (_accuracy_change(sides[0], side, place) for side in sides[1:])
        names = {
            side.contents.score for side, value in zip(sides, accuracies, strict=True) if value
        }
        yield Line(f"test {' or '.join(sorted(names))}", accuracies, (None, *changes))
    if any(measured):
        latencies = [
            Value(m.latency.p50, "time", m.latency.p50_interval) if m else None for m in measured
        ]
        yield _line("latency p50", latencies, "speed", _doubts(sides, measured))
        memory = [
            Value(m.memory.model, "bytes") if m and m.memory.model is not None else None
            for m in measured
        ]
        if any(memory):
            yield _line("peak memory, model", memory, "less")
    files = [side.file(place) for side in sides]
    if any(files):
        yield _line("file size", [Value(f.size, "bytes") if f else None for f in files], "size")


def _line(label: str, values: Sequence[Value | None], words: Words, note: str = "") -> Line:
    return Line(label, tuple(values), tuple(_changes(values, words)), note)


def _doubts(sides: Sequence[Side], measured: Sequence[Measurement | None]) -> str:
    """Which latencies are not to be relied on, and why."""
    texts = [(side.name, _doubt(m)) for side, m in zip(sides, measured, strict=True) if m]
    return "; ".join(f"{name}: {text}" for name, text in texts if text)


def _doubt(m: Measurement) -> str:
    doubts = [] if m.conclusive else ["inconclusive"]
    doubts += [] if m.latency.steady else ["not steady"]
    doubts += [] if m.provenance == "measured" else [m.provenance]
    return ", ".join([*doubts, *m.noise])


def _changes(values: Sequence[Value | None], words: Words) -> Iterator[Change | None]:
    """Against the first run, with the widest ratio that both intervals allow."""
    first = values[0]
    for position, value in enumerate(values):
        if not position or first is None or value is None or min(first.number, value.number) <= 0:
            yield None
            continue
        then, now = first.interval, value.interval
        interval = None
        if then and now and min(then[0], now[0]) > 0:
            interval = (then[0] / now[1], then[1] / now[0])
        yield change_of(first.number / value.number, interval, words)


def _accuracy_change(first: Side, side: Side, place: Place) -> Change | None:
    """In points, with a paired interval; None where the test samples are not the same."""
    if not _same_split(first, side):
        return None
    before, after = first.right(place), side.right(place)
    if before is None or after is None or len(before) != len(after):
        return None
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    difference = (won - lost) / max(1, len(before))
    interval: Interval = paired_difference(won, lost, len(before))
    sure = interval[0] > 0 or interval[1] < 0
    bounds = " to ".join(points_text(bound).removesuffix(" points") for bound in interval)
    text = points_text(difference) if won != lost else "the same"
    return Change(difference, "points", text, bounds, difference > 0 if sure else None)


def _same_split(first: Side, side: Side) -> bool:
    here, there = first.split, side.split
    return here is not None and there is not None and all(
        np.array_equal(a, b) for a, b in zip(here, there, strict=True)
    )  # fmt: skip


def _arrays(path: Path, *names: str) -> list[np.ndarray] | None:
    """Arrays of `verify/logits.npz`; None when any is not there."""
    found = arrays(path / "verify/logits.npz", names, what="the test split's logits")
    return [found[name] for name in names] if len(found) == len(names) else None


def _settings(sides: Sequence[Side]) -> Iterator[Setting]:
    flat = [dict(_flattened(side.contents.manifest.config)) for side in sides]
    for key in dict.fromkeys(key for one in flat for key in one):
        values = tuple(one.get(key, "–") for one in flat)
        if len(set(values)) > 1:
            yield Setting(key, values)


def _flattened(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        inner: Iterator[tuple[object, object]] = iter(value.items())
    elif isinstance(value, list) and value:
        inner = iter(enumerate(value))
    else:
        text = json.dumps(value, ensure_ascii=False)
        yield prefix, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        return
    for key, entry in inner:
        yield from _flattened(entry, f"{prefix}.{key}" if prefix else str(key))


def _warnings(sides: Sequence[Side], places: Sequence[Place]) -> Iterator[str]:
    """Why figures of these runs are not to be compared as they stand."""
    for side in sides:
        if missing := [name for name in side.contents.missing if name != "quantize"]:
            yield f"{side.name} is not finished: {', '.join(missing)}"
    first = sides[0]
    for side in sides[1:]:
        if first.split is not None and side.split is not None and not _same_split(first, side):
            yield f"{first.name} and {side.name} were tested on different samples: accuracies do not compare"
    found: dict[str, list[str]] = {}
    for place in places:
        known = {side.name: _conditions(side, place) for side in sides}
        measured = {name: values for name, values in known.items() if values}
        for what in next(iter(measured.values()), {}):
            values = {name: conditions[what] for name, conditions in measured.items()}
            differ = len({json.dumps(value, default=str) for value in values.values()}) > 1
            if differ or (what == "throttled" and any(values.values())):
                each = ", ".join(f"{value} in {name}" for name, value in values.items())
                found.setdefault(f"{what}: {each}", []).append(place.title)
    for text, where in found.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        yield f"{text} ({where[0]}{more})"


def _conditions(side: Side, place: Place) -> dict[str, object]:
    """What must be the same for two measurements to compare; empty when there is none."""
    m = side.measurement(place)
    if m is None or side.contents.profile is None:
        return {}
    environment = side.contents.profile.environment.get(m.target, {})
    names = {"runtime_version": "runtime version", "batch_size": "batch size"}
    here = {names.get(name, name): value for name, value in conditions(m, environment).items()}
    return {**here, "provenance": m.provenance}
