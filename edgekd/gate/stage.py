"""Stage `gate`: the budgets of the configuration against what verify and profile found."""

from __future__ import annotations

from edgekd.gate.budget import check_budgets, figures
from edgekd.pipeline.stages import Context


def run(context: Context) -> None:
    """Write `gate.json`. The exit code is in it; a broken budget is a result, not an error."""
    import numpy as np

    run = context.run
    with np.load(run.path / "verify/logits.npz", allow_pickle=False) as logits:
        report = check_budgets(context.config.gate, figures(run.verify, run.profile, logits))
    report.write(context.folder / "gate.json")
