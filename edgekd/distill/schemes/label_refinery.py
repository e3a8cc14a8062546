"""Bagherinezhad et al. 2018, "Label Refinery" (arXiv 1805.02641)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from edgekd.distill.scheme import scheme
from edgekd.distill.schemes.born_again import BornAgain


@scheme("label_refinery")
class LabelRefinery(BornAgain):
    """Each generation's labels are the last one's softmax on the very view that is trained on (eq. 3).

    No hard labels and no temperature: alpha is 0, methods is kd at T = 1. The first generation learns
    from the labels alone; with `first: teacher` the run's teacher is the first refinery.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "alpha": 0.0,
        "methods": [{"kd": {"temperature": 1.0, "weight": 1.0}}],
    }
    first: Literal["teacher", "labels"] = Field(
        "labels", description="What the first generation learns from."
    )
