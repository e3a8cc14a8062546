"""Target descriptors: one YAML file per device, in `targets/` of edgekd and of the user's project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from edgekd.config import units
from edgekd.config.load import Lines
from edgekd.config.schema import Precision, Section
from edgekd.config.shelf import Shelf
from edgekd.errors import UsageError
from edgekd.registry import suggestion

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Limits(Section):
    """A smaller device, emulated on this one; what is measured under limits is labelled so."""

    cpus: int | list[int] | Literal["big", "little"] | None = Field(
        None, description="A number of cores, the numbers of cores, or the fast or the slow ones."
    )
    cpu_quota: float | None = Field(
        None, ge=0.01, le=1024, description="Cores' worth of CPU time: 0.5 is half of one core."
    )
    memory: str | None = Field(None, description='Of each model\'s process: "512 MiB".')

    @field_validator("cpus")
    @classmethod
    def _some(cls, value: int | list[int] | str | None) -> int | list[int] | str | None:
        numbers = [value - 1] if isinstance(value, int) else value
        if isinstance(numbers, list) and not (
            numbers and len(set(numbers)) == len(numbers) and all(0 <= n < 4096 for n in numbers)
        ):
            raise ValueError("should be at least 1, or different core numbers from 0")
        return value

    @field_validator("memory")
    @classmethod
    def _enough_for_python(cls, value: str | None) -> str | None:
        if value is not None and not 2**24 <= units.parse(value, "bytes") <= 2**50:
            raise ValueError('should be between 16 MiB and 1 PiB, such as "512 MiB"')
        return value

    def for_device(self) -> dict[str, Any]:
        """As in a plan: memory in bytes."""
        memory = None if self.memory is None else round(units.parse(self.memory, "bytes"))
        return {"cpus": self.cpus, "cpu_quota": self.cpu_quota, "memory": memory}


class Target(Section):
    """A device and how models are measured on it."""

    name: Name = Field(description="As in profile.targets; the same as the file's name.")
    kind: Literal["cpu", "mobile", "edge"] = Field(alias="class")
    description: str = ""
    transport: Name = Field("local", description="How the device is reached.")
    runtimes: list[Name] = Field(["onnxruntime", "openvino"], min_length=1)
    threads: int = Field(1, ge=1, le=1024, description="Inference threads.")
    precision: Precision = Field("f32", description="What the runtime must execute.")
    limits: Limits | None = Field(None, description="A smaller device, emulated on this one.")


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
