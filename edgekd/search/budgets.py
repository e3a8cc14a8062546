"""Budgets against a student that is not finished: on its cost before training, on its accuracy after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekd.config import units
from edgekd.config.schema import Budget, dimension
from edgekd.errors import UsageError
from edgekd.results import QUANTIZED, Accuracy, Interval, Variant
from edgekd.search.cost import ON_COST
from edgekd.search.records import Cost, Costs, Standing

ON_ACCURACY = ("accuracy", "accuracy_drop", "agreement")
# Metrics of both files, the figure that they are a ratio of.
_RATIO = {"speedup": "latency_p50", "memory_ratio": "memory", "compression": "size"}
# How far an accuracy misses counts in shares of this: one point.
_POINT = 0.01


def on_cost(
    budgets: Sequence[Budget], costs: Costs, teacher: Costs | None, variant: Variant
) -> list[Standing]:
    """Every budget on cost, at the place where it stands worst.

    Raises UsageError for one that no figure answers.
    """
    found = []
    for i, budget in enumerate(budgets):
        if budget.metric not in ON_COST:
            continue
        here = list(_figures(budget, costs, teacher, budget.variant or variant))
        if not here and costs.failed is None:
            raise UsageError(
                f"nothing tells {budget.metric} with runtime {budget.runtime or 'any'} on target "
                f"{budget.target or 'any'}"
                + (f", variant {budget.variant}" if budget.variant else ""),
                where=f"gate.budgets.{i}",
                fix="what is known before training: "
                + ", ".join(sorted({figure.metric for figure in costs.figures}))
                + "; of a predicted target latency_p50 and size",
            )
        standings = [
            _standing(budget, f"{f.target}/{f.runtime}", f.value, f.interval) for f in here
        ]
        if standings:
            found.append(max(standings, key=lambda standing: standing.beyond))
    return found


def on_accuracy(
    budgets: Sequence[Budget], accuracy: Accuracy, teacher: Accuracy | None, agreement: float
) -> list[Standing]:
    """Every budget on accuracy, on the validation split."""
    found = []
    for budget in budgets:
        if budget.metric not in ON_ACCURACY:
            continue
        value, interval = accuracy.value, accuracy.interval
        if budget.metric == "agreement":
            value, interval = agreement, (agreement, agreement)
        elif budget.metric == "accuracy_drop":
            if teacher is None:
                continue
            low, high = accuracy.interval
            value = teacher.value - accuracy.value
            interval = (teacher.value - high, teacher.value - low)
        found.append(_standing(budget, "validation split", value, interval))
    return found


def left(budgets: Sequence[Budget]) -> list[str]:
    """Metrics that only the gate can judge, once the student is whole."""
    judged = (*ON_COST, *ON_ACCURACY)
    return list(dict.fromkeys(b.metric for b in budgets if b.metric not in judged))


def variants(budgets: Sequence[Budget], quantized: Variant | None) -> list[Variant]:
    """The precisions to choose from: a budget on quantized files leaves no choice."""
    if quantized is None:
        return ["f32"]
    bound = any(budget.variant in QUANTIZED for budget in budgets)
    return [quantized] if bound else ["f32", quantized]


def _figures(
    budget: Budget, costs: Costs, teacher: Costs | None, variant: Variant
) -> Iterator[Cost]:
    metric = _RATIO.get(budget.metric, budget.metric)
    for figure in costs.figures:
        if (
            figure.metric != metric
            or figure.variant != variant
            or budget.runtime not in (None, figure.runtime)
            or budget.target not in (None, figure.target)
        ):
            continue
        if metric == budget.metric:
            yield figure
            continue
        whole = _same_place(figure, teacher)
        if whole is not None:
            yield _over(budget.metric, whole, figure)


def _same_place(figure: Cost, teacher: Costs | None) -> Cost | None:
    place = (figure.metric, figure.target, figure.runtime, "f32")
    every = teacher.figures if teacher else ()
    return next((f for f in every if (f.metric, f.target, f.runtime, f.variant) == place), None)


def _over(metric: str, whole: Cost, part: Cost) -> Cost:
    """The teacher's by the student's figure."""
    interval: Interval | None = None
    if whole.interval and part.interval:
        low, high = whole.interval
        interval = (low / part.interval[1], high / max(part.interval[0], 1e-12))
    value = max(whole.value, 1) / max(part.value, 1) if metric == "memory_ratio" else (
        whole.value / part.value
    )  # fmt: skip
    return part.model_copy(update={"metric": metric, "value": value, "interval": interval})


def _standing(budget: Budget, place: str, value: float, interval: Interval | None) -> Standing:
    of = dimension(budget.metric)
    limit = units.parse(budget.bound, of)
    upper = budget.max is not None
    low, high = interval or (value, value)
    within, beyond = (high <= limit, low > limit) if upper else (low >= limit, high < limit)
    missed = _missed(value, limit, upper=upper, shares=of in ("points", "share"))
    sign = "≤" if upper else "≥"
    shown, wanted = units.format_quantity(value, of), units.format_quantity(limit, of)
    text = f"{budget.metric} on {place} is {shown}, budget {sign} {wanted}"
    if missed > 1:
        gap = (
            f"{units.format_quantity(abs(value - limit), 'points')} too "
            if of in ("points", "share")
            else f"{missed:,.0f} times too "
            if missed >= 100
            else f"{missed:.3g} times too "
        )
        text += f": {gap}{'much' if upper else 'little'}"
    return Standing(
        budget=f"{budget.metric} {sign} {wanted}",
        place=place,
        value=value,
        limit=limit,
        beyond=missed,
        verdict="pass" if within else "fail" if beyond else "inconclusive",
        text=text,
    )


def _missed(value: float, limit: float, *, upper: bool, shares: bool) -> float:
    """1 or less where the limit holds; how many times beyond it otherwise."""
    if (value <= limit) if upper else (value >= limit):
        return 1.0
    if shares:
        # Ratios of accuracies near 100 % say nothing.
        return 1 + abs(value - limit) / _POINT
    few = 1e-12
    return max(value, few) / max(limit, few) if upper else max(limit, few) / max(value, few)
