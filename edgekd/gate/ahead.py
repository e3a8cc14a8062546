"""Budgets that nothing can answer: told before anything is computed, not at the end of the line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.config.schema import Budget, Config
from edgekd.errors import UsageError
from edgekd.profile.targets import Target, find
from edgekd.registry import suggestion
from edgekd.results import QUANTIZED

NEEDS_BASELINE = "give one with --baseline, or as gate.baseline: a run, or a .onnx or .xml file"


def check_answerable(config: Config, base: Path) -> None:
    """Raises UsageError with the place of a budget that no figure of such a run will be for."""
    targets = [find(name, base) for name in config.profile.targets]
    for i, budget in enumerate(config.gate.budgets):
        where = f"gate.budgets.{i}"
        if config.student.auto and budget.target is not None:
            find(budget.target, base, where=where)  # what is found is profiled there too
        else:
            _check_place(budget, targets, where)
        if budget.metric.startswith("user.") and config.gate.metrics is None:
            raise UsageError(
                f"nothing gives {budget.metric}",
                where=where,
                fix="gate.metrics should name the function that gives it",
            )
        if budget.metric.endswith("_vs_baseline") and config.gate.baseline is None:
            raise UsageError(f"{budget.metric} needs a baseline", where=where, fix=NEEDS_BASELINE)
        if budget.variant in QUANTIZED and config.quantize is None:
            raise UsageError(
                f"{budget.metric} is of {budget.variant} files, and there are to be none",
                where=where,
                fix="give quantize: {recipe: …}, or the budget without variant",
            )


def _check_place(budget: Budget, targets: Sequence[Target], where: str) -> None:
    names = [target.name for target in targets]
    if budget.target is not None and budget.target not in names:
        raise UsageError(
            f"nothing is measured on target {budget.target!r}{suggestion(budget.target, names)}",
            where=where,
            fix="add it to profile.targets",
        )
    runtimes = {runtime for target in targets for runtime in target.runtimes}
    if budget.runtime is None or budget.runtime in runtimes:
        return
    from edgekd.profile.device.runtimes import RUNTIMES

    # Accuracy is told of every runtime, whatever the targets have.
    runtimes |= RUNTIMES.keys()
    if budget.runtime not in runtimes:
        raise UsageError(
            f"nothing is measured with runtime {budget.runtime!r}"
            + suggestion(budget.runtime, sorted(runtimes)),
            where=where,
        )
