"""Target descriptors: one YAML file per device, in `targets/` of edgekd and of the user's project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgekd.config.load import Lines
from edgekd.config.schema import Precision, Section
from edgekd.config.shelf import Shelf
from edgekd.errors import UsageError
from edgekd.registry import suggestion

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Target(Section):
    """A device and how models are measured on it."""

    name: Name = Field(description="As in profile.targets; the same as the file's name.")
    kind: Literal["cpu", "mobile", "edge"] = Field(alias="class")
    description: str = ""
    transport: Name = Field("local", description="How the device is reached.")
    runtimes: list[Name] = Field(["onnxruntime", "openvino"], min_length=1)
    threads: int = Field(1, ge=1, le=1024, description="Inference threads.")
    precision: Precision = Field("f32", description="What the runtime must execute.")
    cost_model: FileName | None = Field(
        None,
        description="Of `edgekd targets calibrate`, a file in a targets folder; null: NAME.cost.json.",
    )

    @property
    def predicted(self) -> bool:
        """Whether the device is not attached, so that only a cost model speaks for it."""
        return self.transport == "predicted"


def _check(path: Path, target: Target, lines: Lines) -> None:
    from edgekd.profile.device.runtimes import RUNTIMES
    from edgekd.profile.transport import TRANSPORTS

    def refuse(key: str, text: str) -> None:
        raise UsageError(f"{key}: {text}", where=f"{path}:{lines.get((key,), 1)}")

    if target.transport not in TRANSPORTS.names():
        known = suggestion(target.transport, TRANSPORTS.names())
        refuse("transport", f"unknown transport {target.transport!r}{known}")
    for runtime in target.runtimes:
        if runtime not in RUNTIMES:
            refuse("runtimes", f"unknown runtime {runtime!r}{suggestion(runtime, RUNTIMES)}")


TARGETS = Shelf("target", "targets", "profile.targets", Target, _check)
find = TARGETS.find
