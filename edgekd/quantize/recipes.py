"""Calibration recipes: one YAML file each, in `calibration/` of edgekd and of the user's project."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

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
    method: Literal["static", "dynamic", "weights-int8", "weights-int4"] = Field(
        "static",
        description="static: weights and activations, with ranges from the samples. dynamic: "
        "activations by what they are at the moment. weights-…: weights alone. The last three are "
        "for transformers and recurrent networks.",
    )
    backend: Literal["auto", "nncf", "onnxruntime"] = Field(
        "nncf",
        description="What quantizes: NNCF, or ONNX Runtime's quantizer (needs the ONNX file, also for "
        "OpenVINO). auto: what is faster on the target in a short measurement.",
    )
    range: Literal["min-max", "mean-min-max", "percentile", "mse", "entropy"] = Field(
        "min-max",
        description="Activation ranges. min-max: extremes over all samples; mean-min-max: mean of the "
        "samples' extremes (ONNX Runtime: moving average); percentile: without outliers; mse: the range "
        "with the least squared error (NNCF); entropy: with the least KL divergence (ONNX Runtime).",
    )
    preset: Literal["mixed", "performance"] = Field(
        "mixed", description="mixed: asymmetric activations; performance: symmetric."
    )
    bias_correction: Literal["none", "fast", "accurate"] = Field(
        "none",
        description="Shift of the outputs that quantization makes, taken out again (NNCF). fast estimates "
        "it from each channel's mean input, which is wrong where inputs are not alike everywhere (borders, "
        "tokens): it rarely helps and can cost 16 dB.",
    )
    model_type: Literal["transformer"] | None = Field(
        None, description="transformer: NNCF's patterns of attention."
    )
    smooth_quant: float | None = Field(
        None,
        ge=0,
        le=1,
        description="SmoothQuant's α for matrix products: how much of the activations' spread goes into "
        "the weights (Xiao 2023, eq. 4); null: none; NNCF's own choice for transformers is 0.95.",
    )
    group_size: int = Field(
        64,
        ge=16,
        le=4096,
        description="Weights that share a scale, for weights-int4: a power of two.",
    )
    reduced_range: Literal["auto", "on", "off"] = Field(
        "auto",
        description="7-bit weights, for x86 CPUs without VNNI or AMX; auto: as the targets need.",
    )
    exclude: list[str] = Field(
        [], description="Regular expressions of node names that stay in float32."
    )
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("group_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"{value} is no power of two: 16, 32, 64, 128, …")
        return value

    @field_validator("exclude")
    @classmethod
    def _expressions(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value


RECIPES = Shelf("calibration recipe", "calibration", "quantize.recipe", Recipe)
