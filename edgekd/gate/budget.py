"""Budgets against measurements: verdicts from intervals, not from points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgekd.config import units
from edgekd.config.schema import DIMENSIONS, Budget, Gate
from edgekd.errors import UsageError
from edgekd.results import (
    Check,
    GateReport,
    Interval,
    ProfileReport,
    Variant,
    Verdict,
    VerifyReport,
)
from edgekd.statistics import paired_difference


@dataclass(frozen=True)
class Figure:
    """A value of one metric, in base units; `exact` figures (sizes, errors) have no interval."""

    metric: str
    value: float
    interval: Interval | None
    runtime: str
    target: str | None = None
    conclusive: bool = True
    variant: Variant = "f32"


def check_budgets(gate: Gate, figures: Iterable[Figure]) -> GateReport:
    """Hold every budget against every figure it speaks of.

    Raises UsageError for a budget that no figure answers: it would otherwise pass unseen.
    """
    figures = list(figures)
    shipped: Variant = "int8" if any(f.variant == "int8" for f in figures) else "f32"
    checks: list[Check] = []
    for i, budget in enumerate(gate.all_budgets):
        matching = [figure for figure in figures if _speaks_of(budget, figure, shipped)]
        if not matching:
            measured = sorted(
                {f"{f.target or 'any target'}/{f.runtime}/{f.variant}" for f in figures}
            )
            raise UsageError(
                f"nothing was measured for {budget.metric} with runtime "
                f"{budget.runtime or 'any'} on target {budget.target or 'any'}, "
                f"variant {budget.variant or shipped}",
                where=f"gate.budgets.{i}",
                fix=f"measured: {', '.join(measured)}",
            )
        checks += [_check(budget, figure) for figure in matching]
    verdict = _overall(checks)
    broken_code: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 4}
    code = broken_code[verdict]
    if verdict == "inconclusive" and gate.on_inconclusive != "fail":
        code = 0
    return GateReport(verdict=verdict, exit_code=code, checks=tuple(checks))


def figures(
    verify: VerifyReport, profile: ProfileReport, logits: np.lib.npyio.NpzFile
) -> Iterator[Figure]:
    """Every figure of the student that a budget can speak of.

    `logits` is the verify stage's `logits.npz`: the teacher and the student answered the same
    samples, so that the interval of the accuracy drop is that of a paired difference.
    """
    labels = logits["labels"]
    for file in verify.files:
        if file.role != "student":
            continue
        accuracy, agreement = file.accuracy, file.teacher_agreement
        teacher, student = (
            logits[f"{file.runtime}/{name}"].argmax(1) == labels
            for name in ("teacher", _name(file.variant))
        )
        drop = float(teacher.mean() - student.mean())
        between = paired_difference(
            int((teacher & ~student).sum()), int((student & ~teacher).sum()), len(labels)
        )
        of = partial(Figure, runtime=file.runtime, variant=file.variant)
        yield of("accuracy", accuracy.value, accuracy.interval)
        yield of("agreement", agreement, None)
        yield of("parity_error", file.max_error, None)
        yield of("accuracy_drop", drop, between)
    yield from measured(profile)


def measured(profile: ProfileReport) -> Iterator[Figure]:
    """The figures of the student that a profile has alone."""
    for m in profile.measurements:
        if m.role != "student":
            continue
        of = partial(
            Figure, runtime=m.runtime, target=m.target, conclusive=m.conclusive, variant=m.variant
        )
        yield of("latency_p50", m.latency.p50, m.latency.p50_interval)
        if m.latency.kind == "call":
            yield of("latency_p90", m.latency.p90, m.latency.p90_interval)
            yield of("latency_p99", m.latency.p99, m.latency.p99_interval)
        yield of("throughput", m.throughput, m.throughput_interval)
        yield of("memory", m.memory.model, None)
        yield of("size", m.size, None)
    for c in profile.comparisons:
        of = partial(Figure, runtime=c.runtime, target=c.target, variant=c.variant)
        yield of("speedup", c.speedup, c.speedup_interval)
        yield of("memory_ratio", c.memory_ratio, None)
        yield of("compression", c.compression, None)


def _name(variant: Variant) -> str:
    """The student's name in `logits.npz`."""
    return "student" if variant == "f32" else f"student-{variant}"


def _speaks_of(budget: Budget, figure: Figure, shipped: Variant) -> bool:
    """`shipped` is the variant that a budget means when it names none.

    Parity is of the export then: how far INT8 may be off is a matter of accuracy.
    """
    if budget.metric == "parity_error":
        shipped = "f32"
    return (
        budget.metric == figure.metric
        and figure.variant == (budget.variant or shipped)
        and budget.runtime in (None, figure.runtime)
        # Accuracy belongs to the file, on whichever target it runs.
        and (budget.target is None or figure.target in (None, budget.target))
    )


def _check(budget: Budget, figure: Figure) -> Check:
    dimension = DIMENSIONS[budget.metric]
    limit = units.parse(budget.bound, dimension)
    sign = "≤" if budget.max is not None else "≥"
    written = f"{sign} {units.format_quantity(limit, dimension)}"
    verdict = _verdict(figure, limit, upper=budget.max is not None)
    shown = units.format_quantity(figure.value, dimension)
    if figure.interval:
        low, high = (units.format_quantity(bound, dimension) for bound in figure.interval)
        shown += f" [{low}, {high}]"
    place = "/".join(part for part in (figure.target, figure.runtime) if part)
    return Check(
        metric=budget.metric,
        target=figure.target,
        runtime=figure.runtime,
        variant=figure.variant,
        value=figure.value,
        interval=figure.interval,
        limit=written,
        verdict=verdict,
        text=f"{budget.metric} on {place}: {shown}, budget {written}",
    )


def _verdict(figure: Figure, limit: float, *, upper: bool) -> Verdict:
    """Latency-like figures: the whole interval must lie on one side of the limit.

    Accuracy is a count on a fixed test split, not a noisy reading: it passes when the count
    does. Where it does not, it fails only if the interval (sampling of that split) says that
    the difference is real; a handful of images is inconclusive.
    """
    within = figure.value <= limit if upper else figure.value >= limit
    if figure.metric == "accuracy_vs_baseline" and figure.interval:
        # The same samples, the same labels: worse is only what chance does not explain.
        return "fail" if figure.interval[0] > limit else "pass"
    if figure.interval is None:
        return "pass" if within else "fail"
    low, high = figure.interval
    all_within = high <= limit if upper else low >= limit
    all_beyond = low > limit if upper else high < limit
    if figure.metric in ("accuracy", "accuracy_drop") and within:
        return "pass"
    if all_within and figure.conclusive:
        return "pass"
    if all_beyond:
        return "fail"
    return "inconclusive"


def _overall(checks: list[Check]) -> Verdict:
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"
