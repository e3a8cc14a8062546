"""Calibration recipes: one YAML file each, in `calibration/` of edgekd and of the user's project."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgekd.config.schema import Section
from edgekd.config.shelf import Shelf


class Recipe(Section):
    """Which samples calibrate an INT8 model, and how ranges are made of what they show."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: str = ""
    sampler: Literal["random", "stratified", "entropy", "coreset"] = Field(
        "stratified", description="How samples are picked from the training split."
    )
    samples: int = Field(300, ge=1, le=100_000)
    range: Literal["min-max", "mean-min-max", "percentile", "histogram"] = Field(
        "min-max",
        description="Activation ranges: extremes over all samples; mean of the samples' extremes; "
        "mean of the samples' 1 % and 99 % quantiles; the histogram with the least error.",
    )
    preset: Literal["mixed", "performance"] = "mixed"
    model_type: Literal["transformer"] | None = Field(
        None, description="transformer: SmoothQuant and patterns of attention."
    )
    reduced_range: Literal["auto", "on", "off"] = Field(
        "auto", description="7-bit weights, for x86 CPUs without VNNI; auto: as this CPU needs."
    )
    exclude: list[str] = Field(
        [], description="Regular expressions of node names that stay in float32."
    )
    seed: int = Field(0, ge=0, lt=2**31)


RECIPES = Shelf("calibration recipe", "calibration", "quantize.recipe", Recipe)
