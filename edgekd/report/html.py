"""The report as one HTML file that opens from disk: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from markupsafe import Markup

from edgekd.config.units import format_quantity
from edgekd.report import checks, classes, operators, plots, quantization
from edgekd.report.classes import Answers, Changes
from edgekd.report.comparison import (
    Group,
    Place,
    Row,
    deployed_accuracy,
    figure_text,
    groups,
    interval_text,
)
from edgekd.report.contents import ROLES, Contents, latency_samples, read
from edgekd.report.edges import edge_batches, edge_rows
from edgekd.report.examples import Example, examples
from edgekd.report.page import page
from edgekd.report.plots import Plot
from edgekd.results import DeviceFileParity, Epoch, History, Measurement, Parity, Role

if TYPE_CHECKING:
    import numpy as np

    from edgekd.pipeline.run import Run

# Longer tables stay in report.json: they would make the page heavy and nobody reads them to the end.
_MOST_EPOCHS_LISTED = 60
_MOST_PLACES_PLOTTED = 12


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top: what is gained, and from what to what."""

    label: str
    figure: str
    detail: str


@dataclass(frozen=True)
class Item:
    """A line of an environment: dotted name and value as text."""

    name: str
    value: str


def render(run: Run) -> str:
    """The report of everything the run holds; what is missing is said in a sentence.

    Every text from models, data and devices is escaped. Raises UsageError when an artifact of a
    finished stage is missing or was edited.
    """
    contents = read(run)
    compared = groups(contents)
    answers = classes.answers(contents, run)
    return page(
        "report.html.j2",
        manifest=contents.manifest,
        name=contents.manifest.config.get("name", "run"),
        models={role: trained.card for role, trained in contents.models.items()},
        finished=max((record.started for record in contents.stages.values()), default=None),
        missing=contents.missing,
        gate=contents.gate,
        sentences=checks.gate_sentences(contents.gate) if contents.gate else None,
        checks=checks,
        warnings=contents.profile.warnings if contents.profile else (),
        tiles=tuple(_tiles(contents, compared)),
        groups=compared,
        pareto=tuple(_pareto(contents)),
        distributions=tuple(_distributions(contents, run)),
        profiled=contents.profile is not None,
        operators=operators.section(contents),
        quantization=quantization.section(contents),
        score=contents.score,
        score_title=contents.score[0].upper() + contents.score[1:],
        per_class=classes.accuracy_plot(contents),
        changes=tuple(_changes(contents, answers)),
        examples=_examples(contents, run, answers),
        training=tuple(_training(contents)),
        scheme=_scheme(contents),
        given=tuple(role for role, m in contents.models.items() if m.history is None),
        parity=_parity(contents),
        edges=edge_rows(contents.verify),
        edge_batches=edge_batches(contents.verify),
        parity_notes=contents.verify.notes if contents.verify else (),
        device=_device(contents),
        produced=tuple(file for file in contents.files if file.producer),
        parity_sentence=checks.parity_sentence(contents.verify) if contents.verify else None,
        environments=_environments(contents),
        stages=contents.stages,
        seconds=lambda value: format_quantity(value, "time"),
        size=lambda value: format_quantity(value, "bytes"),
        config=yaml.safe_dump(contents.manifest.config, sort_keys=False, allow_unicode=True),
    )


def _changes(
    contents: Contents, answers: Sequence[Answers]
) -> Iterator[tuple[Changes, list[Plot]]]:
    """What every student variant lost, and plots of it."""
    for position, given in enumerate(answers):
        found = classes.changes(given, contents.models["student"].card.classes)
        plotted = list(classes.difference_plots(found, f"changes-{position}"))
        yield found, plotted


def _examples(contents: Contents, run: Run, answers: Sequence[Answers]) -> tuple[Example, ...]:
    if not answers:
        return ()
    card = contents.models["student"].card
    return examples(run, answers, card.classes, card.input)


def _tiles(contents: Contents, compared: list[Group]) -> Iterator[Tile]:
    """What the reader came for, from the place where the student is fastest."""
    best = _fastest(contents)
    rows = {
        row.label: (group, row)
        for group in compared
        if best
        and (group.target, group.runtime, group.variant)
        == (best.target, best.runtime, best.variant)
        for row in group.rows
    }
    for label, key in (
        (contents.score[0].upper() + contents.score[1:], f"test {contents.score}"),
        ("Latency", "latency p50"),
        ("Memory", "peak memory, model"),
        ("File size", "file size"),
    ):
        if key in rows and rows[key][1].change:
            yield _tile(label, *rows[key])
    parameters = next((r for g in compared for r in g.rows if r.label == "parameters"), None)
    if not rows and parameters and parameters.change:
        yield _tile("Parameters", compared[0], parameters)


def _fastest(contents: Contents) -> Measurement | None:
    students = [
        m
        for m in (contents.profile.measurements if contents.profile else ())
        if m.role == "student"
    ]
    first = students[0].target if students else None
    return min(
        (m for m in students if m.target == first), key=lambda m: m.latency.p50, default=None
    )


def _tile(label: str, group: Group, row: Row) -> Tile:
    assert row.teacher
    assert row.student
    assert row.change
    return Tile(label, row.change.text, f"{row.teacher.text} → {row.student.text}, {group.title}")


def _pareto(contents: Contents) -> Iterator[Plot]:
    """One plot per target: latencies of different devices are not for choosing between."""
    measured = contents.profile.measurements if contents.profile else ()
    known = [(m, a) for m in measured if (a := deployed_accuracy(contents, m)) and a.interval]
    targets = dict.fromkeys(m.target for m, _ in known)
    for position, target in enumerate(list(targets)[:_MOST_PLACES_PLOTTED]):
        pairs = [(m, a, a.interval) for m, a in known if m.target == target and a.interval]
        title = f"Test {contents.score} against p50 latency on {target}"
        points = [
            plots.Point(
                m.role, runs_as(m), m.latency.p50, m.latency.p50_interval, a.number, interval
            )
            for m, a, interval in pairs
        ]
        yield Plot(
            title,
            Markup(
                plots.pareto(points, name=f"pareto-{position}", title=title, score=contents.score)
            ),
            ("file", "runtime", "p50", "95 % interval", contents.score, "95 % interval"),
            tuple(
                (
                    m.path,
                    runs_as(m),
                    figure_text(m.latency.p50, "time"),
                    interval_text(m.latency.p50_interval, "time"),
                    a.text,
                    interval_text(interval, "share"),
                )
                for m, a, interval in pairs
            ),
        )


def _distributions(contents: Contents, run: Run) -> Iterator[Plot]:
    if contents.profile is None:
        return
    samples = latency_samples(run)
    measured = [
        m for m in contents.profile.measurements if len(samples.get(m.latency.samples, ())) > 0
    ]
    places = dict.fromkeys(Place(m.target, m.runtime, m.format, m.variant) for m in measured)
    for position, place in enumerate(places):
        pair = {
            m.role: m
            for m in measured
            if (m.target, m.runtime, m.format) == place.where and place.shows(m)
        }
        if position == _MOST_PLACES_PLOTTED:
            return
        title = f"Latency of {place.title}"
        values: dict[Role, np.ndarray] = {
            role: samples[pair[role].latency.samples] for role in ROLES if role in pair
        }
        svg = plots.distribution(values, name=f"latency-{position}", title=title)
        yield Plot(
            title,
            Markup(svg),
            ("model", "calls", "min", "p50", "p90", "p99", "max"),
            tuple(
                (
                    role,
                    f"{pair[role].latency.count:,}",
                    *(
                        figure_text(getattr(pair[role].latency, name), "time")
                        for name in ("min", "p50", "p90", "p99", "max")
                    ),
                )
                for role in values
            ),
        )


def runs_as(m: Measurement) -> str:
    """The runtime, and int8 or int4 for files that are."""
    return m.runtime if m.variant == "f32" else f"{m.runtime} {m.variant}"


def _scheme(contents: Contents) -> list[tuple[str, ...]]:
    """What else a scheme has trained, a row each: name, network, accuracies before export."""
    made = contents.scheme.models if contents.scheme else ()
    if len(made) < 2:
        return []
    return [
        (
            m.name,
            m.model or "made of others",
            ", ".join(m.classes or ()) or "all",
            *(f"{accuracy.value:.2%}" if accuracy else "–" for accuracy in (m.validation, m.test)),
        )
        for m in made
    ]


def _training(contents: Contents) -> Iterator[Plot]:
    for role, trained in contents.models.items():
        history = trained.history
        if history is None or not history.epochs:
            continue
        title = f"Training of the {role}"
        names = tuple(dict.fromkeys(name for epoch in history.epochs for name in epoch.losses))
        listed = _listed(history)
        shown = "" if len(listed) == len(history.epochs) else "; report.json has all of them"
        yield Plot(
            title,
            Markup(
                plots.curves(
                    role, history, name=f"training-{role}", title=title, score=contents.score
                )
            ),
            ("epoch", *names, f"validation {contents.score}", "validation loss", "learning rate"),
            tuple(_epoch(epoch, names) for epoch in listed),
            f"{len(history.epochs)} epochs in {format_quantity(history.seconds, 'time')}; "
            f"kept: epoch {_kept(history)}{shown}.",
        )


def _listed(history: History) -> list[Epoch]:
    step = -(-len(history.epochs) // _MOST_EPOCHS_LISTED)
    last = len(history.epochs) - 1
    return [
        epoch
        for i, epoch in enumerate(history.epochs)
        if i % step == 0 or i in (history.best, last)
    ]


def _epoch(epoch: Epoch, names: tuple[str, ...]) -> tuple[str, ...]:
    return (
        str(epoch.epoch + 1),
        *(f"{epoch.losses[name]:.4g}" if name in epoch.losses else "–" for name in names),
        figure_text(epoch.validation_accuracy, "share"),
        f"{epoch.validation_loss:.4g}",
        f"{epoch.learning_rate:.3g}",
    )


def _kept(history: History) -> int:
    return history.epochs[history.best].epoch + 1


def _parity(contents: Contents) -> tuple[tuple[Parity, Mapping[str, str]], ...]:
    files = contents.verify.files if contents.verify else ()
    return tuple(
        (
            p,
            {
                "max_error": f"{p.max_error:.2e}",
                "max_abs_error": f"{p.max_abs_error:.2e}",
                "cosine": f"{p.cosine:.8f}",
                "agreement": checks.agreement_text(p),
                "teacher_agreement": "–"
                if p.teacher_agreement is None
                else figure_text(p.teacher_agreement, "share"),
                "accuracy": figure_text(p.accuracy.value, "share"),
            },
        )
        for p in files
    )


def _device(contents: Contents) -> tuple[tuple[DeviceFileParity, Mapping[str, str]], ...]:
    return tuple(
        (
            p,
            {
                "max_error": "–" if p.max_error is None else f"{p.max_error:.2e}",
                "tolerance": f"{p.tolerance:.2g}",
                "agreement": figure_text(p.agreement, "share"),
                "accuracy": figure_text(p.accuracy.value, "share"),
            },
        )
        for p in (contents.verify.device if contents.verify else ())
    )


def _environments(contents: Contents) -> dict[str, tuple[Item, ...]]:
    """What each target said of itself, then what the line ran in."""
    found = {
        f"target {target}": tuple(_items(values))
        for target, values in (contents.profile.environment if contents.profile else {}).items()
    }
    found["edgekd ran in"] = tuple(_items(contents.manifest.environment))
    return found


def _items(value: Mapping[str, object], prefix: str = "") -> Iterator[Item]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _items(inner, f"{prefix}{name}.")
        else:
            yield Item(f"{prefix}{name}", _plain(inner))


def _plain(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return ", ".join(map(_plain, value)) or "–"
        case _:
            return str(value)
