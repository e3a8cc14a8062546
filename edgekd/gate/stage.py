"""Stage `gate`: the budgets of the configuration against what verify and profile found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekd.config.schema import Gate
from edgekd.gate.budget import Figure, check_budgets, figures
from edgekd.history.record import record
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context


def run(context: Context) -> None:
    """Write `gate.json`. The exit code is in it; a broken budget is a result, not an error."""
    run, gate = context.run, context.config.gate
    with np.load(run.path / "verify/logits.npz", allow_pickle=False) as logits:
        found = list(figures(run.verify, run.profile, logits))
    if gate.baseline is not None:
        found += _against_baseline(context, gate, baseline_of(gate, context.base))
    report = check_budgets(gate, found)
    report.write(context.folder / "gate.json")
    record(context, found, report)


def baseline_of(gate: Gate, base: Path) -> Run:
    """The run that `gate.baseline` names. Raises UsageError when it is none."""
    return Run.open(base / Path(gate.baseline or "").expanduser())


def _against_baseline(context: Context, gate: Gate, baseline: Run) -> Iterator[Figure]:
    from edgekd.gate.baseline import figures
    from edgekd.profile.targets import find

    dataset, profile = context.dataset, context.config.profile
    yield from figures(
        context.run,
        baseline,
        gate,
        [find(name, context.base) for name in profile.targets],
        profile,
        dataset.tensor(dataset.test[: profile.batch_size]).numpy(),
        context.progress,
    )
