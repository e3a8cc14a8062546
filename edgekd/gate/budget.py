"""Budgets against measurements: verdicts from intervals, not from points."""

from __future__ import annotations

from collections.abc import Iterable

from edgekd.config import units
from edgekd.config.schema import Budget, Gate, dimension
from edgekd.errors import UsageError
from edgekd.gate.ahead import NEEDS_BASELINE
from edgekd.gate.figures import Figure
from edgekd.results import QUANTIZED, SCORES, Check, GateReport, Variant, Verdict

# Counts over a fixed test split: see `_verdict`.
_COUNTED = (*SCORES, *(f"{score}_drop" for score in SCORES), "agreement", "class_recall")
# More than two processes of the same file differ by.
_BETWEEN_PROCESSES = 1.5


def check_budgets(gate: Gate, figures: Iterable[Figure]) -> GateReport:
    """Hold every budget against every figure it speaks of.

    Raises UsageError for a budget that no figure answers: it would otherwise pass unseen.
    """
    figures = list(figures)
    shipped = shipped_variant(figure.variant for figure in figures)
    checks: list[Check] = []
    for i, budget in enumerate(gate.all_budgets):
        matching = [figure for figure in figures if speaks_of(budget, figure, shipped)]
        if not matching:
            where = f"gate.budgets.{i}" if i < len(gate.budgets) else "gate.baseline"
            raise _unanswered(budget, gate, figures, shipped, where)
        checks += [_check(budget, figure) for figure in matching]
    verdict = _overall(checks)
    broken_code: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 4}
    code = broken_code[verdict]
    if verdict == "inconclusive" and gate.on_inconclusive != "fail":
        code = 0
    return GateReport(verdict=verdict, exit_code=code, checks=tuple(checks))


def shipped_variant(variants: Iterable[Variant]) -> Variant:
    """Of the student's files the one that budgets without a variant speak of."""
    return next((variant for variant in variants if variant in QUANTIZED), "f32")


def _unanswered(
    budget: Budget, gate: Gate, figures: list[Figure], shipped: Variant, where: str
) -> UsageError:
    """The error for a budget that speaks of no figure, with what it could have spoken of."""
    if budget.metric.endswith("_vs_baseline") and gate.baseline is None:
        return UsageError(
            f"{budget.metric} needs a baseline",
            where=where,
            fix=NEEDS_BASELINE,
        )
    return UsageError(
        f"nothing was measured for {budget.metric} with runtime {budget.runtime or 'any'} on "
        f"target {budget.target or 'any'}, variant {budget.variant or shipped}"
        + (f", class {budget.label!r}" if budget.label else ""),
        where=where,
        fix=_known(budget, gate, figures),
    )


def _known(budget: Budget, gate: Gate, figures: list[Figure]) -> str:
    same = [figure for figure in figures if figure.metric == budget.metric]
    if not same and budget.metric.startswith("user."):
        if gate.metrics is None:
            return "gate.metrics should name the function that gives it"
        names = sorted({f.metric for f in figures if f.metric.startswith("user.")})
        return f"gate.metrics gives: {', '.join(names) or 'nothing'}"
    if not same:
        why = "; not every device tells it" if budget.metric == "energy" else ""
        return f"{budget.metric} was measured nowhere{why}"
    places = sorted({f"{f.target or 'any target'}/{f.runtime}/{f.variant}" for f in same})
    labels = sorted({figure.label for figure in same if figure.label})
    classes = f"; classes: {', '.join(labels)}" if budget.label else ""
    return f"measured: {', '.join(places)}{classes}"


def speaks_of(budget: Budget, figure: Figure, shipped: Variant) -> bool:
    """Whether a budget is on a figure; `shipped` is the variant that it means when it names none.

    Parity is of the export then: how far INT8 may be off is a matter of accuracy.
    """
    if budget.metric == "parity_error":
        shipped = "f32"
    return (
        budget.metric == figure.metric
        and budget.label == figure.label
        and figure.variant == (budget.variant or shipped)
        and budget.runtime in (None, figure.runtime)
        # Accuracy belongs to the file, on whichever target it runs.
        and (budget.target is None or figure.target in (None, budget.target))
    )


def _check(budget: Budget, figure: Figure) -> Check:
    of = dimension(budget.metric)
    limit = units.parse(budget.bound, of)
    sign = "≤" if budget.max is not None else "≥"
    written = f"{sign} {units.format_quantity(limit, of)}"
    verdict = _verdict(figure, limit, upper=budget.max is not None)
    straddles = figure.interval is not None and figure.interval[0] <= limit <= figure.interval[1]
    shown = "not measured there"
    if figure.value is not None:
        shown = units.format_quantity(figure.value, of)
    if figure.interval:
        low, high = (units.format_quantity(bound, of) for bound in figure.interval)
        shown += f" [{low}, {high}]"
    if figure.note:
        shown += f" ({figure.note})"
    place = "/".join(part for part in (figure.target, figure.runtime) if part)
    name = f"{budget.metric} of {figure.label!r}" if figure.label else budget.metric
    if figure.provenance != "measured":
        shown += f" ({figure.provenance})"
    if figure.noisy:
        shown += " (the machine was disturbed)"
    if not figure.conclusive and verdict == "inconclusive":
        shown += " (one process only: there was no time for more)"
    if verdict == "pass" and straddles and _counted(budget.metric):
        shown += " (by the count; the interval straddles the limit)"
    if verdict == "pass" and straddles and budget.metric == "accuracy_vs_baseline":
        shown += " (within chance)"
    return Check(
        metric=budget.metric,
        label=figure.label,
        target=figure.target,
        runtime=figure.runtime,
        variant=figure.variant,
        value=figure.value,
        interval=figure.interval,
        limit=written,
        verdict=verdict,
        provenance=figure.provenance,
        shown=shown,
        text=f"{name} on {place}: {shown}, budget {written}",
    )


def _counted(metric: str) -> bool:
    return metric in _COUNTED or metric.startswith("user.")


def _verdict(figure: Figure, limit: float, *, upper: bool) -> Verdict:
    """Latency-like figures: the whole interval must lie on one side of the limit, however wide it is.

    One that is beyond it on a disturbed machine might hold on a quiet one: that is undecided. Where
    there was time for one process only, that must hold by more than processes differ.

    Accuracy and its like are counts on a fixed test split, not noisy readings: they pass when the
    count does. Where it does not, they fail only if the interval (sampling of that split) says
    that the difference is real; a handful of images is inconclusive.
    """
    if figure.value is None:
        return "inconclusive"
    within = figure.value <= limit if upper else figure.value >= limit
    if figure.metric == "accuracy_vs_baseline" and figure.interval:
        # The same samples, the same labels: worse is only what chance does not explain.
        return "fail" if figure.interval[0] > limit else "pass"
    if figure.interval is None:
        return "pass" if within else "fail"
    low, high = figure.interval
    all_within = high <= limit if upper else low >= limit
    all_beyond = low > limit if upper else high < limit
    if within and _counted(figure.metric):
        return "pass"
    if all_within:
        clear = high * _BETWEEN_PROCESSES <= limit if upper else low >= limit * _BETWEEN_PROCESSES
        return "pass" if figure.conclusive or clear else "inconclusive"
    if all_beyond:
        return "inconclusive" if figure.noisy else "fail"
    return "inconclusive"


def _overall(checks: list[Check]) -> Verdict:
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"
