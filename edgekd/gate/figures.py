"""What a budget can speak of: every figure of the student's files, with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgekd.results import (
    Accuracy,
    Interval,
    Measurement,
    ModelCard,
    Parity,
    ProfileReport,
    Provenance,
    Variant,
    VerifyReport,
)
from edgekd.statistics import clopper_pearson, wilson
from edgekd.tasks.task import CLASSIFICATION, Task
from edgekd.tasks.task import of as of_task


@dataclass(frozen=True)
class Figure:
    """A value of one metric, in base units; exact figures (sizes, errors) have no interval.

    Without a value it could not be measured there, and a budget on it is undecided. One that is not
    `conclusive` is of one process where several were wanted: see `enough`.
    `noisy` latencies and throughputs are of a machine that was disturbed: no worse in truth.
    `label` is the class that it is of, `note` what a reader should know of it; `again` ones the gate
    measured itself, after the profile.
    """

    metric: str
    value: float | None
    interval: Interval | None
    runtime: str
    target: str | None = None
    conclusive: bool = True
    variant: Variant = "f32"
    provenance: Provenance = "measured"
    noisy: bool = False
    label: str | None = None
    note: str = ""
    again: bool = False


def figures(
    verify: VerifyReport,
    profile: ProfileReport,
    logits: np.lib.npyio.NpzFile,
    student: ModelCard,
) -> Iterator[Figure]:
    """Every figure of the student that a budget can speak of.

    `logits` is the verify stage's `logits.npz`: the teacher and the student answered the same
    samples, so that the interval of the accuracy drop is that of a paired difference.
    """
    labels, task = logits["labels"], of_task(student.task)
    for file in verify.files:
        if file.role != "student":
            continue
        accuracy = file.accuracy
        of = partial(Figure, runtime=file.runtime, variant=file.variant)
        yield of(task.metric, accuracy.value, accuracy.interval)
        yield of("parity_error", file.max_error, None)
        yield from _against_teacher(
            logits[f"{file.runtime}/teacher"],
            logits[f"{file.runtime}/{logits_name(file)}"],
            labels,
            task,
            of,
            file,
        )
        if student.task == CLASSIFICATION:
            yield from _recalls(accuracy, student.classes, of)
    yield from measured(profile)


def _against_teacher(
    teacher: np.ndarray,
    student: np.ndarray,
    labels: np.ndarray,
    task: Task,
    of: partial[Figure],
    file: Parity,
) -> Iterator[Figure]:
    """Drop and agreement on the samples that the teacher answers, from both outputs (n, …)."""
    known = np.isfinite(teacher).reshape(len(teacher), -1).all(axis=1)
    total = int(known.sum())
    if not total:
        note = "the teacher has no answers to the test split"
        yield of(f"{task.metric}_drop", None, None, note=note)
        if task.top1:
            yield of("agreement", None, None, note=note)
        return
    note = "" if total == len(labels) else f"on the {total} samples that the teacher answers"
    drop, between = task.lost(teacher[known], student[known], labels[known])
    yield of(f"{task.metric}_drop", drop, between, note=note)
    if file.teacher_agreement is not None:
        agreeing = wilson(round(file.teacher_agreement * total), total)
        yield of("agreement", file.teacher_agreement, agreeing, note=note)


def measured(profile: ProfileReport) -> Iterator[Figure]:
    """The figures of the student that a profile has alone."""
    for m in profile.measurements:
        if m.role != "student":
            continue
        of = partial(
            Figure,
            runtime=m.runtime,
            target=m.target,
            conclusive=enough(m),
            variant=m.variant,
            provenance=m.provenance,
        )
        timed = partial(of, noisy=bool(m.noise))
        yield timed("latency_p50", m.latency.p50, m.latency.p50_interval)
        if m.latency.kind == "call":
            yield timed("latency_p90", m.latency.p90, m.latency.p90_interval)
            yield timed("latency_p99", m.latency.p99, m.latency.p99_interval)
        if m.latency.kind == "call" and m.latency.p95 is not None:
            yield timed("latency_p95", m.latency.p95, m.latency.p95_interval)
        yield timed("throughput", m.throughput, m.throughput_interval)
        yield of("memory", m.memory.model, None, conclusive=True)
        yield of("size", m.size, None, conclusive=True)
        if m.energy is not None:
            yield timed("energy", m.energy.value, m.energy.interval)
    for p in profile.predictions:
        if p.role != "student":
            continue
        of = partial(
            Figure, runtime=p.runtime, target=p.target, variant=p.variant, provenance=p.provenance
        )
        yield of("latency_p50", p.p50, p.p50_interval, note="predicted, not measured")
        yield of("size", p.size, None)
    provenance = {m.target: m.provenance for m in profile.measurements}
    for c in profile.comparisons:
        of = partial(
            Figure,
            runtime=c.runtime,
            target=c.target,
            variant=c.variant,
            provenance=provenance[c.target],
        )
        yield of("speedup", c.speedup, c.speedup_interval)
        yield of("memory_ratio", c.memory_ratio, None)
        yield of("compression", c.compression, None)


def enough(m: Measurement) -> bool:
    """Whether the intervals speak of more than the luck of one process, however wide they are.

    Time may have ended after the first of several launches: its interval is that of one process.
    """
    return m.launches > 1 or m.conclusive


def logits_name(file: Parity) -> str:
    """The file's name in `logits.npz`, after its runtime."""
    return file.role if file.variant == "f32" else f"{file.role}-{file.variant}"


def _recalls(accuracy: Accuracy, classes: tuple[str, ...], of: partial[Figure]) -> Iterator[Figure]:
    """Recall of every class that was tested; and of the worst one, for a floor under all of them.

    Some class is always the worst by chance: the floor's interval has the level 1 − 0.05 / classes
    (Bonferroni), and is broken when any class is surely below it.
    """
    counts = {name: c for name, c in zip(classes, accuracy.per_class, strict=True) if c[1]}
    for name, (correct, total) in counts.items():
        yield of("class_recall", correct / total, wilson(correct, total), label=name)
    worst = min(counts, key=lambda name: counts[name][0] / counts[name][1])
    bounds = [clopper_pearson(*count, level=1 - 0.05 / len(counts)) for count in counts.values()]
    interval = (min(low for low, _ in bounds), min(high for _, high in bounds))
    value = counts[worst][0] / counts[worst][1]
    yield of("class_recall", value, interval, note=f"class {worst!r}")
