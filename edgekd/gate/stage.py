"""Stage `gate`: the budgets of the configuration against what verify and profile found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.config.schema import Gate
from edgekd.errors import UsageError
from edgekd.gate.again import settle
from edgekd.gate.figures import Figure, figures
from edgekd.history.record import record
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context

if TYPE_CHECKING:
    from edgekd.gate.counterparts import Baseline


def run(context: Context) -> None:
    """Write `gate.json`. The exit code is in it; a broken budget is a result, not an error."""
    report, found = settle(context, list(_figures(context)))
    held_to = context.config.gate.model_dump(mode="json")
    report = report.model_copy(update={"held_to": held_to})
    report.write(context.folder / "gate.json")
    record(context, found, report)


def baseline_path(gate: Gate, base: Path) -> Path:
    """The run folder or the model file that `gate.baseline` names. Raises UsageError without one."""
    path = base / Path(gate.baseline or "").expanduser()
    if not path.exists():
        raise UsageError(f"no such run or model file: {path}", where="gate.baseline")
    return path


def _figures(context: Context) -> Iterator[Figure]:
    run, gate = context.run, context.config.gate
    with np.load(run.path / "verify/logits.npz", allow_pickle=False) as logits:
        yield from figures(run.verify, run.profile, logits, run.card("student"))
        if gate.metrics is not None:
            from edgekd.gate import user_metrics

            budgeted = {budget.metric for budget in gate.budgets}
            yield from user_metrics.figures(
                gate.metrics, context.base, run.verify, logits, budgeted
            )
    if gate.baseline is not None:
        yield from _against_baseline(context, gate)


def _against_baseline(context: Context, gate: Gate) -> Iterator[Figure]:
    from edgekd.gate.baseline import figures
    from edgekd.profile.targets import find

    dataset, profile = context.dataset, context.config.profile
    yield from figures(
        context.run,
        _baseline(context, baseline_path(gate, context.base)),
        gate,
        [find(name, context.base) for name in profile.targets],
        profile,
        dataset.tensor(dataset.test[: profile.batch_size]).numpy(),
        context.progress,
    )


def _baseline(context: Context, path: Path) -> Baseline:
    from edgekd.gate.counterparts import FileBaseline, RunBaseline

    if path.is_file():
        return FileBaseline(path, context.dataset)
    return RunBaseline(Run.open(path))
