"""Target descriptors: one YAML file per device, in `targets/` of edgekd and of the user's project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekd.config.load import Lines
from edgekd.config.schema import Precision, Section
from edgekd.config.shelf import Shelf
from edgekd.errors import UsageError
from edgekd.registry import suggestion

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Adb(Section):
    """How an Android device is reached and what runs there: Python, or a native tool."""

    serial: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        description="As `adb devices` shows it; without it the only attached device.",
    )
    folder: str = Field(
        "/data/local/tmp/edgekd",
        pattern=r"^/[^\x00-\x1f\x7f]{1,511}$",
        description="Where edgekd keeps its files on the device.",
    )
    python: str | None = Field(
        None,
        pattern=r"^/[^\x00-\x1f\x7f]{1,511}$",
        description="Python 3 on the device with numpy and the runtime, executable by adb's shell.",
    )
    runner: Literal["onnxruntime_perf_test", "benchmark_app"] | None = Field(
        None, description="A runtime's own benchmark tool, for devices without Python."
    )
    runner_path: str | None = Field(
        None,
        pattern=r"^/[^\x00-\x1f\x7f]{1,511}$",
        description="The runner on the device; its libraries are found beside it.",
    )
    runner_files: list[str] = Field(
        [], description="Or the runner and its libraries here, to be sent; the program first."
    )

    @model_validator(mode="after")
    def _one_way_to_run(self) -> Adb:
        if (self.python is None) == (self.runner is None):
            raise ValueError("give either python (its path on the device) or runner")
        if (self.runner is None) != (self.runner_path is None and not self.runner_files):
            raise ValueError("runner goes with runner_path (on the device) or runner_files (here)")
        if self.runner_path is not None and self.runner_files:
            raise ValueError("give runner_path or runner_files, not both")
        if ".." in self.folder.split("/"):
            raise ValueError("folder must not contain '..'")
        return self


class Target(Section):
    """A device and how models are measured on it."""

    name: Name = Field(description="As in profile.targets; the same as the file's name.")
    kind: Literal["cpu", "mobile", "edge"] = Field(alias="class")
    description: str = ""
    transport: Name = Field("local", description="How the device is reached.")
    runtimes: list[Name] = Field(["onnxruntime", "openvino"], min_length=1)
    threads: int = Field(1, ge=1, le=1024, description="Inference threads.")
    precision: Precision = Field("f32", description="What the runtime must execute.")
    adb: Adb | None = Field(None, description="For transport adb.")


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
    if (target.transport == "adb") != (target.adb is not None):
        refuse("transport" if target.adb is None else "adb", "transport: adb goes with adb: {…}")
    if target.adb is not None and target.adb.runner is not None:
        from edgekd.profile.native.tool import TOOLS

        known = TOOLS.get(target.adb.runner).runtime
        if target.runtimes != [known]:
            refuse("runtimes", f"{target.adb.runner} runs {known}: write runtimes: [{known}]")


TARGETS = Shelf("target", "targets", "profile.targets", Target, _check)
find = TARGETS.find
