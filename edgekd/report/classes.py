"""Class by class: which answers the student lost, won and confuses, held against the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from edgekd.config.schema import dimension
from edgekd.errors import UsageError
from edgekd.report import plots
from edgekd.report.comparison import figure_text, interval_text, points_text
from edgekd.report.contents import ROLES, Contents, arrays
from edgekd.report.plots import Plot
from edgekd.results import Accuracy, Interval, Parity, Role, Variant
from edgekd.statistics import paired_difference
from edgekd.tasks.task import CLASSIFICATION

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run

# Longer tables stay in report.json: they would make the page heavy and nobody reads them to the end.
_MOST_PLOTTED = 20
_MOST_LISTED = 200
_MOST_CONFUSIONS = 12
_POINTS = dimension("accuracy_drop")
# Where a class has another score than the share of its samples that is right, and what that counts.
_OF_A_CLASS = {"miou": "IoU"}
_COUNTED = {"miou": "pixels, label or student"}


@dataclass(frozen=True)
class Answers:
    """Class indices (n,) of the test samples: the labels, the teacher's and a student's answers.

    `logits` are theirs by name, `indices` (n,) the samples' positions in the data set.
    """

    runtime: str
    variant: Variant
    labels: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    indices: np.ndarray
    logits: dict[Role, np.ndarray]

    @property
    def title(self) -> str:
        """ "openvino", or "openvino, int8 student"."""
        return self.runtime if self.variant == "f32" else f"{self.runtime}, {self.variant} student"


@dataclass(frozen=True)
class ClassChange:
    """A class: samples, how many each model gets right, and those that only one of them does.

    `difference` is student − teacher as a share of the samples, with its paired 95 % interval.
    """

    name: str
    samples: int
    teacher: int
    student: int
    lost: int
    won: int
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Confusion:
    """How many samples of class `label` each model calls `answer`; `difference` as above."""

    label: str
    answer: str
    samples: int
    teacher: int
    student: int
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Changes:
    """Everything that one student file answers otherwise than the teacher's in the same runtime."""

    runtime: str
    variant: Variant
    title: str
    samples: int
    lost: int
    won: int
    difference: float
    interval: Interval
    classes: tuple[ClassChange, ...]
    confusions: tuple[Confusion, ...]

    @property
    def sentence(self) -> str:
        """What was lost and won, in words."""
        low, high = self.interval
        verdict = (
            "Chance can make such a difference" if low <= 0 <= high else "Chance hardly does that"
        )
        return (
            f"Of {self.samples:,} test samples the student gets {self.lost:,} wrong that the teacher "
            f"gets right, and {self.won:,} right that the teacher gets wrong: "
            f"{points_text(self.difference)} ({interval_text(self.interval, _POINTS)}). {verdict}."
        )


def answers(contents: Contents, run: Run) -> tuple[Answers, ...]:
    """The answers of every student variant in the first runtime that ran both models.

    Empty when the verify stage is not done or its logits were not kept. Raises UsageError when
    `verify/logits.npz` is not what the stage wrote.
    """
    student = _student(contents)
    if contents.task != CLASSIFICATION:
        return ()
    path = run.path / "verify/logits.npz"
    if student is None or contents.verify is None or not path.is_file():
        return ()
    runtime = student.runtime
    variants = dict.fromkeys(
        p.variant
        for p in contents.verify.files
        if p.runtime == runtime and p.role == "student" and p.format == student.format
    )
    names = {v: "student" if v == "f32" else f"student-{v}" for v in variants}
    wanted = [f"{runtime}/{name}" for name in ("teacher", *names.values())]
    found = arrays(path, ["labels", "indices", *wanted], what="the test split's logits")
    found = _answered(found, wanted[0])
    if found and not len(found["labels"]):
        return ()
    classes = len(contents.models["student"].card.classes)
    if not _valid(found, wanted, classes):
        raise UsageError(
            "is of other models or classes than this run has",
            where=str(path),
            fix="run edgekd verify with --force",
        )
    return tuple(
        Answers(
            runtime,
            variant,
            found["labels"],
            found[wanted[0]].argmax(1),
            found[f"{runtime}/{name}"].argmax(1),
            found["indices"],
            {"teacher": found[wanted[0]], "student": found[f"{runtime}/{name}"]},
        )
        for variant, name in names.items()
    )


def _answered(found: dict[str, np.ndarray], teacher: str) -> dict[str, np.ndarray]:
    """The samples that the teacher has an answer to: recorded ones may be missing, rows of NaN."""
    logits = found.get(teacher)
    if logits is None or logits.ndim != 2 or logits.dtype.kind != "f":
        return found
    missing = np.isnan(logits).all(axis=1)
    if not missing.any() or any(len(a) != len(missing) for a in found.values()):
        return found
    return {name: array[~missing] for name, array in found.items()}


def _student(contents: Contents) -> Parity | None:
    """The student's file that is compared: where both models ran, or, alone, anywhere."""
    pair = first_pair(contents)
    if pair is not None:
        return pair["student"]
    files = contents.verify.files if contents.verify else ()
    alone = all(p.role == "student" for p in files) and len(contents.models) == len(ROLES)
    return next((p for p in files if p.variant == "f32"), None) if alone else None


def _valid(found: dict[str, np.ndarray], wanted: list[str], classes: int) -> bool:
    """Whether there is an answer of every file to every sample."""
    if not {"labels", "indices", *wanted} <= found.keys():
        return False
    labels, indices = found["labels"], found["indices"]
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or indices.shape != labels.shape:
        return False
    if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < classes:
        return False
    logits = [found[name] for name in wanted]
    return all(
        a.shape == (len(labels), classes) and a.dtype.kind == "f" and np.isfinite(a).all()
        for a in logits
    )


def changes(a: Answers, classes: tuple[str, ...]) -> Changes:
    """What the student answers otherwise, by class and by confusion."""
    right = {"teacher": a.teacher == a.labels, "student": a.student == a.labels}
    lost, won = right["teacher"] & ~right["student"], right["student"] & ~right["teacher"]
    total = len(a.labels)

    def count(chosen: np.ndarray | slice) -> list[int]:
        return [int(n) for n in np.bincount(a.labels[chosen], minlength=len(classes))]

    of_each = zip(
        classes,
        *map(count, (slice(None), right["teacher"], right["student"], lost, won)),
        strict=True,
    )
    return Changes(
        a.runtime,
        a.variant,
        a.title,
        total,
        int(lost.sum()),
        int(won.sum()),
        *_paired(int(won.sum()), int(lost.sum()), total),
        tuple(
            ClassChange(name, samples, teacher, student, gone, come, *_paired(come, gone, samples))
            for name, samples, teacher, student, gone, come in of_each
        ),
        tuple(_confusions(a, classes)),
    )


def _paired(gained: int, given_up: int, total: int) -> tuple[float, Interval]:
    low, high = paired_difference(gained, given_up, total)
    return (gained - given_up) / max(1, total), (max(-1.0, low), min(1.0, high))


def _confusions(a: Answers, classes: tuple[str, ...]) -> Iterator[Confusion]:
    """The pairs whose counts differ most between the models; ties in the order of the classes."""
    counts: dict[tuple[int, int], list[int]] = {}
    for column, given in enumerate((a.teacher, a.student)):
        wrong = given != a.labels
        pairs, found = np.unique(
            np.stack([a.labels[wrong], given[wrong]]), axis=1, return_counts=True
        )
        for label, answer, count in zip(*pairs.tolist(), found.tolist(), strict=True):
            counts.setdefault((label, answer), [0, 0])[column] = count
    changed = [pair for pair, (teacher, student) in counts.items() if teacher != student]
    changed.sort(key=lambda pair: (-abs(counts[pair][1] - counts[pair][0]), pair))
    for label, answer in changed[:_MOST_CONFUSIONS]:
        here = a.labels == label
        teacher, student = here & (a.teacher == answer), here & (a.student == answer)
        given_up, gained = int((teacher & ~student).sum()), int((student & ~teacher).sum())
        yield Confusion(
            classes[label],
            classes[answer],
            int(here.sum()),
            int(teacher.sum()),
            int(student.sum()),
            *_paired(gained, given_up, int(here.sum())),
        )


def difference_plots(found: Changes, name: str) -> Iterator[Plot]:
    """Recall by class, and the confusions that changed most."""
    tested = [c for c in found.classes if c.samples]
    several = len(tested) > _MOST_PLOTTED
    by_loss = sorted(tested, key=lambda c: c.difference)
    listed = (by_loss if several else tested)[:_MOST_LISTED]
    plotted = listed[:_MOST_PLOTTED]
    notes = [
        "Paired 95 % intervals. Filled: it misses 0, as about one class in 20 does by chance alone."
    ]
    if several:
        notes.append(f"Plotted: the {len(plotted)} classes of {len(tested)} that lose the most.")
    if len(tested) > len(listed):
        notes.append(f"Listed: {len(listed)}; report.json has all.")
    title = f"Recall, student less teacher, {found.title}"
    rows = [plots.Difference(c.name, c.difference, c.interval) for c in plotted]
    yield Plot(
        title,
        Markup(plots.differences(rows, name=f"{name}-recall", title=title)),
        ("class", "samples", "teacher", "student", "lost", "won", "difference", "95 % interval"),
        tuple(
            (
                c.name,
                f"{c.samples:,}",
                figure_text(c.teacher / c.samples, "share"),
                figure_text(c.student / c.samples, "share"),
                f"{c.lost:,}",
                f"{c.won:,}",
                points_text(c.difference),
                interval_text(c.interval, _POINTS),
            )
            for c in listed
        ),
        " ".join(notes),
    )
    if found.confusions:
        yield _confusion_plot(found, f"{name}-confusions")


def _confusion_plot(found: Changes, name: str) -> Plot:
    title = f"Confusions that changed most, {found.title}"
    bars = [
        plots.Bar(f"{c.label} → {c.answer}", c.teacher / c.samples, c.student / c.samples)
        for c in found.confusions
    ]
    axis = "share of the class's samples"
    return Plot(
        title,
        Markup(plots.shares(bars, name=name, title=title, axis=axis)),
        ("class → answer", "samples", "teacher", "student", "difference", "95 % interval"),
        tuple(
            (
                f"{c.label} → {c.answer}",
                f"{c.samples:,}",
                f"{c.teacher:,}",
                f"{c.student:,}",
                points_text(c.difference),
                interval_text(c.interval, _POINTS),
            )
            for c in found.confusions
        ),
        "The right class, and the wrong one that the model answers instead.",
    )


def accuracy_plot(contents: Contents) -> Plot | None:
    """Of the first runtime that ran both files; the others compute the same function."""
    chosen = first_pair(contents)
    student, accuracies = _student(contents), {}
    if chosen is not None:
        accuracies = {role: parity.accuracy for role, parity in chosen.items()}
    elif student is not None and (test := contents.models["teacher"].training.test) is not None:
        accuracies = {"teacher": test, "student": student.accuracy}
    if student is None or not accuracies:
        return None
    classes = contents.models[next(iter(contents.models))].card.classes
    shares = {role: _shares(accuracy) for role, accuracy in accuracies.items()}
    if not student.accuracy.per_class:
        return None
    rows = [
        plots.ClassAccuracy(name, theirs, ours)
        for name, theirs, ours in zip(classes, shares["teacher"], shares["student"], strict=False)
    ]
    if not rows:
        return None
    changed = sorted(rows, key=_difference)
    several = len(rows) > _MOST_PLOTTED
    plotted = changed[:_MOST_PLOTTED] if several else rows
    score = _OF_A_CLASS.get(student.accuracy.metric, "accuracy")
    title = f"Test {score} by class, {student.runtime}"
    notes = []
    if several:
        notes.append(f"Plotted: the {len(plotted)} classes of {len(rows)} that lose the most.")
    if len(rows) > _MOST_LISTED:
        notes.append(f"Listed: {_MOST_LISTED}; report.json has all.")
    listed = changed[:_MOST_LISTED] if several else rows
    totals = {
        name: total for name, (_, total) in zip(classes, student.accuracy.per_class, strict=False)
    }
    return Plot(
        title,
        Markup(plots.per_class(plotted, name="classes", title=title, score=score)),
        (
            "class",
            _COUNTED.get(student.accuracy.metric, "samples"),
            "teacher",
            "student",
            "difference",
        ),
        tuple(
            (
                c.name,
                f"{totals[c.name]:,}",
                _share(c.teacher),
                _share(c.student),
                _difference_text(c.teacher, c.student),
            )
            for c in listed
        ),
        " ".join(notes),
    )


def first_pair(contents: Contents) -> dict[Role, Parity] | None:
    """Teacher and student in the first runtime that ran both."""
    if contents.verify is None or not contents.models:
        return None
    pairs: dict[tuple[str, str], dict[Role, Parity]] = {}
    for parity in contents.verify.files:
        if parity.variant == "f32":
            pairs.setdefault((parity.runtime, parity.format), {})[parity.role] = parity
    return next((pair for pair in pairs.values() if len(pair) == len(ROLES)), None)


def _shares(accuracy: Accuracy) -> list[float | None]:
    return [correct / total if total else None for correct, total in accuracy.per_class]


def _difference(c: plots.ClassAccuracy) -> float:
    return 0.0 if c.teacher is None or c.student is None else c.student - c.teacher


def _share(value: float | None) -> str:
    return "–" if value is None else figure_text(value, "share")


def _difference_text(teacher: float | None, student: float | None) -> str:
    if teacher is None or student is None:
        return "–"
    return points_text(student - teacher)
