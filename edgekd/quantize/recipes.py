"""Calibration recipes: one YAML file each, in `calibration/` of edgekd and of the user's project."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekd.config.schema import Section
from edgekd.config.shelf import Shelf

_RANGES = {
    "nncf": ("min-max", "mean-min-max", "percentile", "mse"),
    "onnxruntime": ("min-max", "percentile", "entropy"),
}


class Recipe(Section):
    """Which samples calibrate an INT8 model, and how ranges are made of what they show."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: str = ""
    mode: Literal["static", "dynamic", "weights-int8", "weights-int4"] = Field(
        "static",
        description="static: ranges of activations from samples; dynamic: found at every inference; "
        "weights-…: activations stay float32. The last three are for transformers and need no samples.",
    )
    backend: Literal["nncf", "onnxruntime"] = Field(
        "nncf", description="Whose algorithms; either makes the files of both formats."
    )
    sampler: Literal["random", "stratified", "entropy", "coreset"] = Field(
        "stratified", description="How samples are picked from the training split."
    )
    samples: int = Field(300, ge=1, le=100_000)
    range: Literal["min-max", "mean-min-max", "percentile", "entropy", "mse"] = Field(
        "min-max",
        description="Activation ranges: extremes over all samples; mean of the samples' extremes (nncf); "
        "percentile (nncf: mean of the samples'); least KL divergence of the histogram (onnxruntime); "
        "least squared error of the histogram (nncf).",
    )
    percentile: float = Field(
        99.99, gt=50, lt=100, description="With range percentile, in per cent; both ends are cut."
    )
    bias_correction: Literal["none", "fast", "accurate"] = Field(
        "fast",
        description="Of the shift that rounded weights make (nncf); accurate: layer by layer.",
    )
    smooth_quant: float | None = Field(
        None,
        ge=0,
        le=1,
        description="SmoothQuant's alpha (Xiao 2023, eq. 4) for matrix products (nncf); null: NNCF's "
        "0.95 with model_type transformer, else none.",
    )
    preset: Literal["mixed", "performance"] = Field(
        "mixed", description="mixed: asymmetric activations; performance: symmetric."
    )
    model_type: Literal["transformer"] | None = Field(
        None, description="transformer: SmoothQuant and patterns of attention."
    )
    reduced_range: Literal["auto", "on", "off"] = Field(
        "auto",
        description="7-bit weights, for x86 CPUs without VNNI; auto: as the targets need, or this CPU.",
    )
    exclude: list[str] = Field(
        [], description="Regular expressions of ONNX node names that stay in float32."
    )
    group_size: int = Field(64, ge=16, le=1024, description="Weights per scale in weights-int4.")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _backend_can(self) -> Recipe:
        if self.mode != "static":
            return self
        if self.range not in _RANGES[self.backend]:
            able = next(name for name, ranges in _RANGES.items() if self.range in ranges)
            raise ValueError(f"range {self.range} needs backend: {able}")
        if self.backend == "onnxruntime" and self.smooth_quant is not None:
            raise ValueError("smooth_quant needs backend: nncf")
        if self.smooth_quant is not None and self.model_type is None:
            raise ValueError("smooth_quant needs model_type: transformer")
        return self


RECIPES = Shelf("calibration recipe", "calibration", "quantize.recipe", Recipe)
