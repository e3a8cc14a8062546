"""Where the time goes: teacher against student by kind of operator and by module, and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from markupsafe import Markup

from edgekd.config.units import format_quantity
from edgekd.report import plots
from edgekd.report.contents import ROLES, Contents
from edgekd.report.plots import Plot
from edgekd.results import Operator, OperatorProfile, OperatorsReport, Role, Roofline

_MOST_BARS = 8  # of each model
_MOST_LISTED = 40
_MOST_PLACES = 8
_MOST_POINTS = 6
BETWEEN = "between operators"
ROOT, UNKNOWN = "(the model itself)", "(unknown)"


@dataclass(frozen=True)
class Section:
    """What the template shows; `paper` are the rows of what the graphs ask for."""

    explanation: str
    paper_columns: tuple[str, ...]
    paper: tuple[tuple[str, ...], ...]
    plots: tuple[Plot, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """Operators of one name together: how many, seconds per inference, share of the whole."""

    name: str
    count: int
    seconds: float
    share: float


def section(contents: Contents) -> Section | None:
    """The report's section, or None when the profile did not look at operators."""
    report = contents.operators
    if report is None:
        return None
    found = [p for p in report.profiles if p.operators]
    pairs = list(_pairs(found))
    shown = pairs[:_MOST_PLACES]
    notes = list(report.notes)
    notes += [
        f"The {c.role} ({c.variant}) has operators without a formula, counted as one operation per "
        f"element: {', '.join(c.guessed)}."
        for c in report.costs
        if c.guessed
    ]
    if len(pairs) > len(shown):
        notes.append(f"Plotted: {len(shown)} of {len(pairs)} pairs; operators.json has all.")
    return Section(
        _explanation(found),
        (
            "File", "Operations", "Weights", "Read and written", "Operations per byte",
            "Activations, least memory",
        ),
        tuple(_paper(report)),
        tuple(
            plot
            for position, pair in enumerate(shown)
            for plot in _plots(pair, contents, report, f"operators-{position}")
        ),
        tuple(notes),
    )  # fmt: skip


def _explanation(found: list[OperatorProfile]) -> str:
    text = (
        "Mean time per inference of every operator, as the runtime's own profiler counts it after all "
        "latencies were measured. Watching costs time, most where operators are short: compare shares, "
        "and take latencies from above."
    )
    mapped = min((p.mapped for p in found), default=None)
    if not mapped:
        return text
    share = "All" if mapped > 0.995 else f"At least {mapped:.0%}"
    return f"{text} {share} of the operators' time is mapped to PyTorch modules."


def _paper(report: OperatorsReport) -> Iterator[tuple[str, ...]]:
    for c in report.costs:
        yield (
            f"{c.role}, {c.variant}, batch {c.batch_size}",
            format_quantity(c.flops, "flop"),
            format_quantity(c.weight_bytes, "bytes"),
            format_quantity(c.moved_bytes, "bytes"),
            f"{c.flops / max(1, c.moved_bytes):.3g}",
            format_quantity(c.peak_activation_bytes, "bytes"),
        )


def _pairs(found: list[OperatorProfile]) -> Iterator[dict[Role, OperatorProfile]]:
    """Every student with the float32 teacher in the same place; a model alone if it is."""
    places = dict.fromkeys((p.target, p.runtime) for p in found)
    for place in places:
        here = [p for p in found if (p.target, p.runtime) == place]
        teacher = next((p for p in here if (p.role, p.variant) == ("teacher", "f32")), None)
        students = [p for p in here if p.role == "student"]
        for student in students:
            yield {"teacher": teacher, "student": student} if teacher else {"student": student}
        if teacher and not students:
            yield {"teacher": teacher}


def _plots(
    pair: dict[Role, OperatorProfile], contents: Contents, report: OperatorsReport, name: str
) -> Iterator[Plot]:
    p = pair.get("student") or pair["teacher"]
    where = f"{p.runtime} on {p.target}" + ("" if p.variant == "f32" else f", {p.variant} student")
    types = {role: by(profile, lambda o: o.type) for role, profile in pair.items()}
    yield _compared(types, f"Time by kind of operator, {where}", f"{name}-types")
    if any(o.module is not None for p in pair.values() for o in p.operators):
        yield _by_module(pair, f"Time by module, {where}", f"{name}-modules")
    roof = next(
        (r for r in report.rooflines if (r.target, r.runtime) == (p.target, p.runtime)), None
    )
    roofline = _roofline(pair, roof, _latencies(contents), f"Roofline, {where}", f"{name}-roof")
    if roofline:
        yield roofline


def module_name(operator: Operator) -> str:
    """The module as people see it."""
    return UNKNOWN if operator.module is None else operator.module or ROOT


def by(profile: OperatorProfile, key: Callable[[Operator], str]) -> list[Share]:
    """Operators with the same key together, the longest first; what is left of the whole last."""
    sums: dict[str, list[float]] = {}
    for operator in profile.operators:
        sums.setdefault(key(operator), []).append(operator.seconds)
    total = sum(operator.seconds for operator in profile.operators)
    whole = max(profile.wall, total) or 1.0
    found = [Share(n, len(times), sum(times), sum(times) / whole) for n, times in sums.items()]
    found.sort(key=lambda share: -share.seconds)
    rest = whole - total
    return [*found, Share(BETWEEN, 0, rest, rest / whole)]


def _by_module(pair: dict[Role, OperatorProfile], title: str, name: str) -> Plot:
    """Modules as deep as few enough of them allow: whole blocks of a deep network."""
    modules = {}
    for role, profile in pair.items():
        names = {module_name(o) for o in profile.operators}
        depths = range(max(text.count(".") for text in names) + 1, 0, -1)
        depth = next((d for d in depths if len({_cut(n, d) for n in names}) <= _MOST_BARS), 1)
        modules[role] = by(profile, _module_cut_to(depth))
    return _compared(modules, title, name)


def _module_cut_to(depth: int) -> Callable[[Operator], str]:
    return lambda operator: _cut(module_name(operator), depth)


def _cut(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _compared(shares: dict[Role, list[Share]], title: str, name: str) -> Plot:
    """Names of either model, the largest share of any first; the rest folded into one."""
    sides = {role: {share.name: share for share in mine} for role, mine in shares.items()}

    def largest(entry: str) -> float:
        return max(side[entry].share for side in sides.values() if entry in side)

    names = sorted(
        {entry for side in sides.values() for entry in side if entry != BETWEEN},
        key=lambda entry: (-largest(entry), entry),
    )
    plotted = [*_folded(names, 2 * _MOST_BARS), (BETWEEN, [BETWEEN])]
    listed = [*_folded(names, _MOST_LISTED), (BETWEEN, [BETWEEN])]

    def cells(role: Role, entries: list[str]) -> tuple[str, str, str]:
        mine = [sides[role][e] for e in entries if e in sides.get(role, {})]
        if not mine:
            return "–", "–", "–"
        count = sum(share.count for share in mine)
        return (
            str(count) if count else "–",
            format_quantity(sum(share.seconds for share in mine), "time"),
            f"{sum(share.share for share in mine):.1%}",
        )

    bars = [
        plots.Bar(
            label,
            *(
                sum(side[e].share for e in entries if e in side) if side else None
                for side in (sides.get(role) for role in ROLES)
            ),
        )
        for label, entries in plotted
    ]
    return Plot(
        title,
        Markup(plots.shares(bars, name=name, title=title, axis="share of the inference")),
        ("", *(f"{role}{what}" for role in ROLES for what in (": operators", ", time", ", share"))),
        tuple((label, *cells("teacher", e), *cells("student", e)) for label, e in listed),
    )


def _folded(names: list[str], most: int) -> list[tuple[str, list[str]]]:
    """(label, names) of the first ones; the others as one entry, if they are several."""
    kept = names if len(names) <= most else names[: most - 1]
    rest = names[len(kept) :]
    return [(n, [n]) for n in kept] + ([(f"{len(rest)} others", rest)] if rest else [])


def _latencies(contents: Contents) -> dict[tuple[str, str, str, str], float]:
    """Median latency of every file, by target, runtime, role and variant."""
    measurements = contents.profile.measurements if contents.profile else ()
    return {(m.target, m.runtime, m.role, m.variant): m.latency.p50 for m in measurements}


def _roofline(
    pair: dict[Role, OperatorProfile],
    roof: Roofline | None,
    latencies: dict[tuple[str, str, str, str], float],
    title: str,
    name: str,
) -> Plot | None:
    """Both models at their measured latency, and the operators that take the longest."""
    work: list[plots.Work] = []
    rows: list[tuple[str, ...]] = []
    int8 = any(p.variant == "int8" for p in pair.values())
    peaks = {k: v for k, v in (roof.flops if roof else {}).items() if k != "int8" or int8}
    for role, p in pair.items():
        total = sum(o.seconds for o in p.operators) or 1.0
        whole = _sum(o.flops for o in p.operators), _sum(o.bytes for o in p.operators)
        seconds = latencies.get((p.target, p.runtime, role, p.variant), p.wall)
        longest = sorted(p.operators, key=lambda o: -o.seconds)[:_MOST_POINTS]
        entries = [(role, *whole, seconds, 1.0)] + [
            (
                f"{module_name(o)}: {o.type}",
                o.flops or 0,
                o.bytes or 0,
                o.seconds,
                o.seconds / total,
            )
            for o in longest
        ]
        for label, flops, size, time, share in entries:
            if not (flops and size and time):
                continue
            alone = label == role
            text = label if alone else f"{role}, {label}"
            work.append(
                plots.Work(role, text, flops / size, flops / time, min(share, 1 if alone else 0.99))
            )
            rows.append(
                (
                    text,
                    format_quantity(flops, "flop"),
                    format_quantity(size, "bytes"),
                    f"{flops / size:.3g}",
                    format_quantity(time, "time"),
                    f"{format_quantity(flops / time, 'flop')}/s",
                    _of_peak(p, flops / time, peaks),
                )
            )
    if not work:
        return None
    shown = None
    note = "The device's limits are not known."
    if roof and peaks:
        shown = plots.Roof(peaks, {"memory": roof.bandwidth, "caches": roof.cache_bandwidth})
        limits = [f"{format_quantity(v, 'flop')}/s in {k}" for k, v in peaks.items()]
        copies = [f"{format_quantity(v, 'bytes')}/s in {k}" for k, v in shown.bandwidths.items()]
        threads = "1 thread" if roof.threads == 1 else f"{roof.threads} threads"
        note = (
            f"Limits {roof.provenance} on the device with {threads}: matrix products "
            f"{', '.join(limits)}; copies {', '.join(copies)}. Diamonds are the models at their "
            "median latency, circles the operators that take the longest."
        )
    return Plot(
        title,
        Markup(plots.roofline(work, shown, name=name, title=title)),
        ("", "operations", "bytes", "per byte", "time", "speed", "of the peak"),
        tuple(rows),
        note,
    )


def _sum(values: Iterable[float | None]) -> float:
    return sum(value for value in values if value is not None)


def _of_peak(p: OperatorProfile, speed: float, peaks: dict[str, float]) -> str:
    """Against the peak in what most of the file computes in."""
    usual = [value for key, value in peaks.items() if (key == "int8") == (p.variant == "int8")]
    return f"{speed / max(usual):.1%}" if usual else "–"
