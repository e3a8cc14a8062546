"""Teacher against student, figure by figure: the rows that the terminal and the HTML report show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgekd.config.units import Dimension, format_quantity
from edgekd.report.contents import ROLES, Contents
from edgekd.results import (
    Accuracy,
    Comparison,
    ExportedFile,
    Interval,
    Latency,
    Measurement,
    Parity,
    Prediction,
    Role,
    Variant,
)
from edgekd.statistics import wilson

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
        units = {
            figure_text(number, self.dimension).partition(" ")[2]
            for number in (self.number, *self.interval)
        }
        return text.removesuffix(f" {units.pop()}") if len(units) == 1 else text


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
    """The rows of one place: a runtime on a target, or the models themselves.

    `more` are figures that few ask for.
    """

    title: str
    detail: str
    rows: tuple[Row, ...]
    target: str | None = None
    runtime: str | None = None
    variant: Variant = "f32"
    more: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a student of one variant is held against the teacher, whose files are float32."""

    target: str | None
    runtime: str | None
    format: str
    variant: Variant

    @property
    def where(self) -> tuple[str | None, str | None, str]:
        """What the records of teacher and student have in common."""
        return self.target, self.runtime, self.format

    @property
    def title(self) -> str:
        """ "openvino on local", "openvino on local, int8 student"."""
        name = self.runtime or self.format
        on = f"{name} on {self.target}" if self.target else name
        return on if self.variant == "f32" else f"{on}, {self.variant} student"

    def shows(self, record: ExportedFile | Parity | Measurement | Prediction) -> bool:
        """Whether a record of this runtime and format belongs here."""
        return record.role == "teacher" or record.variant == self.variant


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


def deployed_accuracy(contents: Contents, m: Measurement) -> Value | None:
    """Test accuracy of a measured file in its runtime: as verified here, or as the device found it."""
    for p in contents.verify.files if contents.verify else ():
        if (p.role, p.runtime, p.format, p.variant) == (m.role, m.runtime, m.format, m.variant):
            return Value(p.accuracy.value, "share", p.accuracy.interval)
    if m.device_parity is None or m.device_parity.accuracy is None:
        return None
    share, samples = m.device_parity.accuracy, m.device_parity.samples
    return Value(share, "share", wilson(round(share * samples), samples))


def groups(contents: Contents) -> list[Group]:
    """Models first, then every place that was measured, then what is only verified."""
    found = [group for group in (_models(contents),) if group.rows]
    places = _places(contents)
    return found + [_deployed(contents, place) for place in places]


def _models(contents: Contents) -> Group:
    rows = []
    if contents.models:
        parameters = {
            role: Value(trained.card.parameters, "number")
            for role, trained in contents.models.items()
            if trained.card.parameters is not None
        }
        rows.append(_row("parameters", parameters, "size"))
        tests = {
            role: trained.training.test
            for role, trained in contents.models.items()
            if trained.training.test is not None
        }
        rows.append(_accuracy_row("test {} before export", tests))
    rows += _on_paper(contents)
    return Group("models", "before export", tuple(rows))


def _on_paper(contents: Contents) -> Iterator[Row]:
    """What the float32 graphs ask for, per inference of the profile's batch."""
    paper = [
        c for c in (contents.operators.costs if contents.operators else ()) if c.variant == "f32"
    ]
    if paper:
        flops = {c.role: Value(c.flops, "flop") for c in paper}
        yield _row("operations per inference", flops, "less")
        live = {c.role: Value(c.peak_activation_bytes, "bytes") for c in paper}
        yield _row("activations, least memory", live, "less")


def _places(contents: Contents) -> list[Place]:
    """Where deployed files are compared: measured places, then what is verified, then the rest."""
    places: dict[Place, None] = {}
    for m in contents.profile.measurements if contents.profile else ():
        places[Place(m.target, m.runtime, m.format, m.variant)] = None
    measured = {(place.runtime, place.format, place.variant) for place in places}
    for x in contents.profile.predictions if contents.profile else ():
        places[Place(x.target, x.runtime, x.format, x.variant)] = None
    for p in contents.verify.files if contents.verify else ():
        if (p.runtime, p.format, p.variant) not in measured:
            places[Place(None, p.runtime, p.format, p.variant)] = None
    known = {(place.format, place.variant) for place in places}
    for file in contents.files:
        if (file.format, file.variant) not in known:
            places[Place(None, None, file.format, file.variant)] = None
    return list(places)


def _deployed(contents: Contents, place: Place) -> Group:
    parity = {
        p.role: p
        for p in (contents.verify.files if contents.verify else ())
        if (p.runtime, p.format) == (place.runtime, place.format) and place.shows(p)
    }
    measured = {
        m.role: m
        for m in (contents.profile.measurements if contents.profile else ())
        if (m.target, m.runtime, m.format) == place.where and place.shows(m)
    }
    sizes = {
        file.role: Value(file.size, "bytes")
        for file in contents.files
        if file.format == place.format and place.shows(file)
    }
    predicted = {
        x.role: x
        for x in (contents.profile.predictions if contents.profile else ())
        if (x.target, x.runtime, x.format) == place.where and place.shows(x)
    }
    rows: list[Row] = []
    if parity:
        rows.append(_accuracy_row("test {}", {r: p.accuracy for r, p in parity.items()}))
    if measured:
        rows += _measured(measured, _comparison(contents, place))
    elif predicted:
        rows += _predicted(predicted)
    elif sizes:
        rows.append(_row("file size", sizes, "size"))
    detail = _detail(measured or predicted, parity, place.format)
    if contents.files and all(file.role == "student" for file in contents.files):
        detail += " · teacher not measured: it only answers"
    return Group(
        place.title, detail, tuple(rows), place.target, place.runtime, place.variant,
        tuple(_more(measured)),
    )  # fmt: skip


def _comparison(contents: Contents, place: Place) -> Comparison | None:
    for comparison in contents.profile.comparisons if contents.profile else ():
        here = (comparison.target, comparison.runtime, comparison.variant)
        if here == (place.target, place.runtime, place.variant):
            return comparison
    return None


def _measured(measured: dict[Role, Measurement], against: Comparison | None) -> Iterator[Row]:
    for label, attribute in (("p50", "p50"), ("p90", "p90"), ("p99", "p99")):
        values = {
            role: _quantile(m.latency, attribute)
            for role, m in measured.items()
            if label == "p50" or m.latency.kind == "call"
        }
        ratio = (against.speedup, against.speedup_interval) if against and label == "p50" else None
        yield _row(f"latency {label}", values, "speed", ratio, _unsettled(measured))
    batches = sorted({m.throughput_latency.batch_size for m in measured.values()})
    yield _row(
        f"throughput, batch {' / '.join(map(str, batches))}",
        {r: Value(m.throughput, "rate", m.throughput_interval) for r, m in measured.items()},
        "more",
    )
    memory = _bytes({r: m.memory.model for r, m in measured.items()})
    yield _row(
        "peak memory, model" if memory else "peak memory, not measured",
        memory,
        "less",
        (against.memory_ratio, None) if against and against.memory_ratio is not None else None,
    )
    if processes := _bytes({r: m.memory.peak_rss for r, m in measured.items()}):
        yield _row("peak memory, process", processes, "less")
    if heaps := _bytes({r: m.memory.wasm_heap for r, m in measured.items()}):
        yield _row("WebAssembly memory, with runtime", heaps, "less")
    energies = {r: m.energy for r, m in measured.items() if m.energy is not None}
    if energies:
        yield _row(
            "energy per sample, processor",
            {r: Value(e.value, "energy", e.interval) for r, e in energies.items()},
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
    yield from _checked_there(measured)


def _more(measured: dict[Role, Measurement]) -> Iterator[Row]:
    """Tails, cold start by its parts, MLPerf's scenarios, memory and size by their parts."""
    for label, words, dimension, figure in _MORE:
        found = {role: x for role, m in measured.items() if (x := figure(m)) is not None}
        if found:
            values = {role: Value(x, dimension) for role, x in found.items()}
            yield _row(label, values, words)


def _of_calls(name: str) -> Callable[[Measurement], float | None]:
    return lambda m: getattr(m.latency, name) if m.latency.kind == "call" else None


def _cold(part: str) -> Callable[[Measurement], float | None]:
    return lambda m: repeated.median if (repeated := getattr(m.cold, part, None)) else None


def _scenario(name: str, figure: str) -> Callable[[Measurement], float | None]:
    return lambda m: next((getattr(s, figure) for s in m.scenarios if s.name == name), None)


_MORE: tuple[tuple[str, Words, Dimension, Callable[[Measurement], float | None]], ...] = (
    ("latency p95", "speed", "time", _of_calls("p95")),
    ("longest call", "speed", "time", _of_calls("max")),
    ("MLPerf SingleStream, p90", "speed", "time", _scenario("SingleStream", "latency")),
    ("MLPerf MultiStream, p99", "speed", "time", _scenario("MultiStream", "latency")),
    ("MLPerf Offline", "more", "rate", _scenario("Offline", "throughput")),
    ("cold start: libraries", "speed", "time", _cold("runtime")),
    ("cold start: load", "speed", "time", _cold("load")),
    ("of which compile", "speed", "time", _cold("compile")),
    ("cold start: first inference", "speed", "time", _cold("first")),
    ("process before the model", "less", "bytes", lambda m: m.memory.baseline_rss),
    ("of which Python", "less", "bytes", lambda m: m.memory.python_rss),
    ("private memory of the model", "less", "bytes", lambda m: m.memory.private_dirty),
    ("weights in the file", "size", "bytes", lambda m: m.memory.weights),
    ("file size, compressed", "size", "bytes", lambda m: m.compressed_size),
)


def _checked_there(measured: dict[Role, Measurement]) -> Iterator[Row]:
    """What was found of the outputs: by a bundle's device itself, or here of a browser's."""
    parity = {role: m.device_parity for role, m in measured.items() if m.device_parity}
    if parity:
        label = f"accuracy there, {max(p.samples for p in parity.values())} samples"
        accuracies = {
            role: Value(p.accuracy, "share") for role, p in parity.items() if p.accuracy is not None
        }
        if accuracies:
            yield Row(label, accuracies.get("teacher"), accuracies.get("student"))
    errors = {role: p.max_error for role, p in parity.items()} | {
        role: m.parity_error for role, m in measured.items() if m.parity_error is not None
    }
    if errors:
        values = {role: Value(error, "number") for role, error in errors.items()}
        yield Row("parity error there", values.get("teacher"), values.get("student"))


def _bytes(counts: dict[Role, int | None]) -> dict[Role, Value]:
    return {role: Value(count, "bytes") for role, count in counts.items() if count is not None}


def _predicted(predicted: dict[Role, Prediction]) -> Iterator[Row]:
    """Nothing but the median can be said of a device that is not attached."""
    note = next(f"predicted, not measured: {x.calibrated}" for x in predicted.values())
    values = {role: Value(x.p50, "time", x.p50_interval) for role, x in predicted.items()}
    yield _row("latency p50, predicted", values, "speed", None, note)
    yield _row("file size", {r: Value(x.size, "bytes") for r, x in predicted.items()}, "size")


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
    disturbed = [role for role, m in measured.items() if m.noise]
    if disturbed:
        notes.append(f"the machine was disturbed: {' and '.join(disturbed)}")
    return "; ".join(notes)


def _detail(
    measured: Mapping[Role, Measurement | Prediction], parity: dict[Role, Parity], format: str
) -> str:
    if not measured:
        verified = _distinct(_computes(p) for p in parity.values())
        return " · ".join([format, *(verified or ["not verified yet"])])
    values = list(measured.values())
    return " · ".join(
        (
            " / ".join(_distinct(m.runtime_version for m in values)),
            format,
            " / ".join(_distinct(_computes(m) for m in values)),
            " / ".join(_distinct(_threads(m.threads) for m in values)),
            " / ".join(_distinct(f"batch {_batch_size(m)}" for m in values)),
            " / ".join(_distinct(m.provenance for m in values)),
        )
    )


def _batch_size(m: Measurement | Prediction) -> int:
    """Predictions are of single inferences."""
    return m.latency.batch_size if isinstance(m, Measurement) else 1


def _computes(m: Measurement | Prediction | Parity) -> str:
    """int8 or int4 for a quantized file, whatever its float layers run in."""
    return m.precision if m.variant == "f32" else m.variant


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
    name = next((a.name for a in accuracies.values()), "accuracy")
    return Row(label.format(name), teacher, student, change)


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
        change = change_of(gain, interval, words) if gain is not None and gain > 0 else None
    return Row(label, teacher, student, change, note)


def _gain(teacher: float, student: float, words: Words) -> float | None:
    if teacher <= 0 or student <= 0:
        return None
    return student / teacher if words == "more" else teacher / student


def change_of(gain: float, interval: Interval | None, words: Words) -> Change:
    """A gain > 0 in words: above 1 is better, below 1 worse, and "the same" where nobody sees it."""
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
