"""Stage `distill`: the student learns, by the scheme, as `student/` of the run folder."""

from __future__ import annotations

from edgekd.distill.workshop import Workshop
from edgekd.pipeline.stages import Context


def run(context: Context) -> None:
    """Write `student/` (model.safetensors, model.json, metrics.json, history.json, scheme.json).

    Other models of the scheme that are of use later are in folders of their own below it.
    """
    workshop = Workshop(context)
    context.config.distill.scheme.entry.train(workshop)
    workshop.report()
