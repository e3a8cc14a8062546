"""Teacher against student, figure by figure: the rows that the terminal and the HTML report show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from edgekd.config.units import Dimension, format_quantity
from edgekd.report.contents import ROLES, Contents
from edgekd.results import Accuracy, Comparison, Interval, Latency, Measurement, Parity, Role

# What a gain above 1 is called, and below 1.
_WORDS: dict[str, tuple[str, str]] = {
    "speed": ("faster", "slower"),
    "size": ("smaller", "larger"),
    "less": ("less", "more"),
    "more": ("more", "less"),
}
Words = Literal["speed", "size", "less", "more"]


@dataclass(frozen=True)
class Value:
    """One figure in base units with its 95 % interval, if it has one."""

    number: float
    dimension: Dimension
    interval: Interval | None = None

    @property
    def text(self) -> str:
        """The figure with its unit."""
        return figure_text(self.number, self.dimension)

    @property
    def interval_text(self) -> str:
        """The interval, without the unit where `text` beside it has the same; or nothing."""
        if self.interval is None:
            return ""
        text = interval_text(self.interval, self.dimension)
        _, _, unit = self.text.partition(" ")
        bare = text.removesuffix(f" {unit}")
        return bare if unit and unit not in bare else text


@dataclass(frozen=True)
class Change:
    """How the student compares: "7.1× faster", with its interval; `better` for the student."""

    number: float
    dimension: Dimension
    text: str
    interval_text: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Row:
    """One figure of both models. `note` says when it is not to be relied on."""

    label: str
    teacher: Value | None
    student: Value | None
    change: Change | None = None
    note: str = ""


@dataclass(frozen=True)
class Group:
    """The rows of one place: a runtime on a target, or the models themselves."""

    title: str
    detail: str
    rows: tuple[Row, ...]
    target: str | None = None
    runtime: str | None = None


def figure_text(number: float, dimension: Dimension) -> str:
    """`format_quantity`, but counts in full: 12,345."""
    if dimension == "number" and number == int(number):
        return f"{int(number):,}"
    return format_quantity(number, dimension).replace("-", "−", dimension == "points")


def interval_text(interval: Interval, dimension: Dimension) -> str:
    """The interval with its unit once where both ends have the same: "29.8–30.4 µs"."""
    low, high = (figure_text(bound, dimension) for bound in interval)
    number, _, unit = low.partition(" ")
    if low.endswith("×"):
        number, unit = low[:-1], "×"
    joined = "–" if interval[0] >= 0 else " to "
    return f"{number}{joined}{high}" if unit and high.endswith(unit) else f"{low}{joined}{high}"


def points_text(difference: float) -> str:
    """A signed difference of two shares in percentage points: "−0.74 points"."""
    return f"{difference * 100:+.2f} points".replace("-", "−")


def groups(contents: Contents) -> list[Group]:
    """Models first, then every (target, runtime, format) measured, then what is only verified."""
    found = [group for group in (_models(contents),) if group.rows]
    places = _places(contents)
    return found + [_deployed(contents, *place) for place in places]


def _models(contents: Contents) -> Group:
    rows = []
    if contents.models:
        parameters = {
            role: Value(trained.card.parameters, "number")
            for role, trained in contents.models.items()
        }
        rows.append(_row("parameters", parameters, "size"))
        tests = {role: trained.training.test for role, trained in contents.models.items()}
        rows.append(_accuracy_row("test accuracy, PyTorch", tests))
    return Group("models", "before export", tuple(rows))


def _places(contents: Contents) -> list[tuple[str | None, str | None, str]]:
    """(target, runtime, format) of every group of deployed files, without repetition."""
    places: dict[tuple[str | None, str | None, str], None] = {}
    for m in contents.profile.measurements if contents.profile else ():
        places[m.target, m.runtime, m.format] = None
    measured = {(runtime, format) for _, runtime, format in places}
    for p in contents.verify.files if contents.verify else ():
        if (p.runtime, p.format) not in measured:
            places[None, p.runtime, p.format] = None
    known = {format for _, _, format in places}
    for file in contents.export.files if contents.export else ():
        if file.format not in known:
            places[None, None, file.format] = None
    return list(places)


def _deployed(contents: Contents, target: str | None, runtime: str | None, format: str) -> Group:
    parity = {
        p.role: p
        for p in (contents.verify.files if contents.verify else ())
        if (p.runtime, p.format) == (runtime, format)
    }
    measured = {
        m.role: m
        for m in (contents.profile.measurements if contents.profile else ())
        if (m.target, m.runtime, m.format) == (target, runtime, format)
    }
    sizes = {
        file.role: Value(file.size, "bytes")
        for file in (contents.export.files if contents.export else ())
        if file.format == format
    }
    rows: list[Row] = []
    if parity:
        rows.append(_accuracy_row("test accuracy", {r: p.accuracy for r, p in parity.items()}))
    if measured:
        rows += _measured(measured, _comparison(contents, target, runtime))
    elif sizes:
        rows.append(_row("file size", sizes, "size"))
    title = f"{runtime or format} on {target}" if target else runtime or format
    return Group(title, _detail(measured, parity, format), tuple(rows), target, runtime)


def _comparison(contents: Contents, target: str | None, runtime: str | None) -> Comparison | None:
    for comparison in contents.profile.comparisons if contents.profile else ():
        if (comparison.target, comparison.runtime) == (target, runtime):
            return comparison
    return None


def _measured(measured: dict[Role, Measurement], against: Comparison | None) -> Iterator[Row]:
    for label, attribute in (("p50", "p50"), ("p90", "p90"), ("p99", "p99")):
        values = {role: _quantile(m.latency, attribute) for role, m in measured.items()}
        ratio = (against.speedup, against.speedup_interval) if against and label == "p50" else None
        yield _row(f"latency {label}", values, "speed", ratio, _unsettled(measured))
    batches = sorted({m.throughput_latency.batch_size for m in measured.values()})
    yield _row(
        f"throughput, batch {' / '.join(map(str, batches))}",
        {r: Value(m.throughput, "rate", m.throughput_interval) for r, m in measured.items()},
        "more",
    )
    yield _row(
        "peak memory, model",
        {r: Value(m.memory.model, "bytes") for r, m in measured.items()},
        "less",
        (against.memory_ratio, None) if against else None,
    )
    yield _row(
        "peak memory, process",
        {r: Value(m.memory.peak_rss, "bytes") for r, m in measured.items()},
        "less",
    )
    yield _row(
        "file size",
        {r: Value(m.size, "bytes") for r, m in measured.items()},
        "size",
        (against.compression, None) if against else None,
    )
    yield _row("cold load", {r: Value(m.load, "time") for r, m in measured.items()}, "speed")
    yield _row("first inference", {r: Value(m.first, "time") for r, m in measured.items()}, "speed")


def _quantile(latency: Latency, name: str) -> Value:
    return Value(getattr(latency, name), "time", getattr(latency, f"{name}_interval"))


def _unsettled(measured: dict[Role, Measurement]) -> str:
    """Why the latencies are not to be relied on; empty when they are."""
    open_roles = [role for role, m in measured.items() if not m.conclusive]
    drifting = [role for role, m in measured.items() if not m.latency.steady]
    notes = []
    if open_roles:
        notes.append(f"inconclusive: {' and '.join(open_roles)}")
    if drifting:
        notes.append(f"not steady: {' and '.join(drifting)}")
    return "; ".join(notes)


def _detail(measured: dict[Role, Measurement], parity: dict[Role, Parity], format: str) -> str:
    if not measured:
        verified = _distinct(p.precision for p in parity.values())
        return " · ".join([format, *(verified or ["not verified yet"])])
    values = list(measured.values())
    return " · ".join(
        (
            " / ".join(_distinct(m.runtime_version for m in values)),
            format,
            " / ".join(_distinct(m.precision for m in values)),
            " / ".join(_distinct(_threads(m.threads) for m in values)),
            " / ".join(_distinct(f"batch {m.latency.batch_size}" for m in values)),
            " / ".join(_distinct(m.provenance for m in values)),
        )
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _accuracy_row(label: str, accuracies: dict[Role, Accuracy]) -> Row:
    values = {role: Value(a.value, "share", a.interval) for role, a in accuracies.items()}
    teacher, student = (values.get(role) for role in ROLES)
    change = None
    if teacher and student:
        difference = student.number - teacher.number
        text = points_text(difference)
        if abs(difference) < 5e-5:
            text = "the same"
        change = Change(difference, "points", text, better=_sign(difference))
    return Row(label, teacher, student, change)


def _row(
    label: str,
    values: dict[Role, Value],
    words: Words,
    ratio: tuple[float, Interval | None] | None = None,
    note: str = "",
) -> Row:
    """`ratio` is the student's gain where it was measured better than by dividing the figures."""
    teacher, student = (values.get(role) for role in ROLES)
    change = None
    if teacher and student:
        gain, interval = ratio or (_gain(teacher.number, student.number, words), None)
        change = _change(gain, interval, words) if gain is not None and gain > 0 else None
    return Row(label, teacher, student, change, note)


def _gain(teacher: float, student: float, words: Words) -> float | None:
    if teacher <= 0 or student <= 0:
        return None
    return student / teacher if words == "more" else teacher / student


def _change(gain: float, interval: Interval | None, words: Words) -> Change:
    forwards, backwards = _WORDS[words]
    shown, bounds = gain, interval
    if gain < 1:
        shown = 1 / gain
        bounds = (1 / interval[1], 1 / interval[0]) if interval and interval[0] > 0 else None
    text = format_quantity(shown, "ratio")
    text = "the same" if text == "1×" else f"{text} {forwards if gain > 1 else backwards}"
    return Change(
        gain,
        "ratio",
        text,
        interval_text(bounds, "ratio") if bounds else "",
        None if text == "the same" else gain > 1,
    )


def _sign(value: float) -> bool | None:
    return None if abs(value) < 5e-5 else value > 0
