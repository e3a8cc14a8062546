"""Budgets against measurements: verdicts from intervals, not from points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from edgekd.config import units
from edgekd.config.schema import DIMENSIONS, Budget, Gate
from edgekd.errors import UsageError
from edgekd.results import Check, GateReport, Interval, ProfileReport, Verdict, VerifyReport
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


def check_budgets(gate: Gate, figures: Iterable[Figure]) -> GateReport:
    """Hold every budget against every figure it speaks of.

    Raises UsageError for a budget that no figure answers: it would otherwise pass unseen.
    """
    figures = list(figures)
    checks: list[Check] = []
    for i, budget in enumerate(gate.budgets):
        matching = [figure for figure in figures if _speaks_of(budget, figure)]
        if not matching:
            measured = sorted({f"{f.target or 'any target'}/{f.runtime}" for f in figures})
            raise UsageError(
                f"nothing was measured for {budget.metric} with runtime "
                f"{budget.runtime or 'any'} on target {budget.target or 'any'}",
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
        accuracy = file.accuracy
        yield Figure("accuracy", accuracy.value, accuracy.interval, file.runtime)
        yield Figure("agreement", file.teacher_agreement, None, file.runtime)
        yield Figure("parity_error", file.max_error, None, file.runtime)
        teacher, student = (
            logits[f"{file.runtime}/{role}"].argmax(1) == labels for role in ("teacher", "student")
        )
        yield Figure(
            "accuracy_drop",
            float(teacher.mean() - student.mean()),
            paired_difference(
                int((teacher & ~student).sum()), int((student & ~teacher).sum()), len(labels)
            ),
            file.runtime,
        )
    for m in profile.measurements:
        if m.role != "student":
            continue
        place = (m.runtime, m.target, m.conclusive)
        latency = m.latency
        yield Figure("latency_p50", latency.p50, latency.p50_interval, *place)
        yield Figure("latency_p90", latency.p90, latency.p90_interval, *place)
        yield Figure("latency_p99", latency.p99, latency.p99_interval, *place)
        yield Figure("throughput", m.throughput, m.throughput_interval, *place)
        yield Figure("memory", m.memory.model, None, *place)
        yield Figure("size", m.size, None, *place)
    for c in profile.comparisons:
        yield Figure("speedup", c.speedup, c.speedup_interval, c.runtime, c.target)
        yield Figure("memory_ratio", c.memory_ratio, None, c.runtime, c.target)
        yield Figure("compression", c.compression, None, c.runtime, c.target)


def _speaks_of(budget: Budget, figure: Figure) -> bool:
    return (
        budget.metric == figure.metric
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
