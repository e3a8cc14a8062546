"""What a calibration keeps: measured networks with their operators, as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekd.artifacts import write_bytes
from edgekd.errors import UsageError
from edgekd.profile.predict.steps import Step
from edgekd.results import Record

Text = Annotated[str, Field(max_length=200)]
Seconds = Annotated[float, Field(gt=0, lt=1e5)]
_MOST_BYTES = 64 << 20


class TimedStep(Step):
    """`seconds` is what the runtime's profiler said; None where it said nothing of it."""

    seconds: float | None = Field(None, ge=0, lt=1e5)


class Observation(Record):
    """One network in one runtime: seconds of an inference without the profiler."""

    network: Text
    runtime: Text
    seconds: Seconds
    steps: tuple[TimedStep, ...] = Field(min_length=1, max_length=20_000)


class Peaks(Record):
    """What the device does at most in a runtime, see `device/roofline.py`."""

    runtime: Text
    threads: int
    flops: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1, max_length=8)
    bandwidth: float = Field(gt=0)
    cache_bandwidth: float = Field(gt=0)
    measured: Text
    cached: bool = False


class Calibration(Record):
    """A cost model's file: what was measured on a device, with which versions and settings.

    The model itself is fitted again whenever this is read: the same file gives the same model.
    `scores`, by runtime, are the errors on networks that a fit did not see, see `model.py`.
    """

    edgekd_cost_model: Literal[1] = 1
    target: Text
    threads: int = Field(ge=1, le=1024)
    precision: Text
    versions: dict[str, Text] = Field(min_length=1, max_length=8)
    device: dict[str, Any] = Field(max_length=16)
    rooflines: dict[str, Peaks] = Field(max_length=8)
    measured: Text
    scores: dict[str, tuple[Annotated[float, Field(ge=0, lt=1e6)], ...]] = Field({}, max_length=8)
    observations: tuple[Observation, ...] = Field(min_length=1, max_length=5000)

    def write(self, path: Path) -> None:
        """Write as JSON without spaces (a megabyte instead of five), atomically."""
        value = self.model_dump(mode="json", exclude_defaults=False)
        write_bytes(path, json.dumps(value, separators=(",", ":"), allow_nan=False).encode())

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read and validate. Raises UsageError."""
        try:
            size = path.stat().st_size
        except OSError:
            size = 0
        if size > _MOST_BYTES:
            raise UsageError(f"is no cost model: it has {size:,} bytes", where=str(path))
        return super().read(path)
