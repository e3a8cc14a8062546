"""Target descriptors: one YAML file per device, in `targets/` of edgekd and of the user's project."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from edgekd.config.load import Lines
from edgekd.config.schema import Positive, Precision, Section
from edgekd.config.shelf import Shelf
from edgekd.errors import UsageError
from edgekd.registry import suggestion


def _address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} should be an IP address, such as 127.0.0.1") from None


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Browser(Section):
    """Where the page for `transport: browser` is served."""

    host: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1", description="An address of this machine; 0.0.0.0: all of them."
    )
    port: int = Field(0, ge=0, le=65535, description="0: any that is free.")
    wait_seconds: Positive = Field(600.0, description="How long to wait for somebody to open it.")
    certificate: str | None = Field(None, description="PEM file for https, with its key.")
    key: str | None = None
    open: bool = Field(False, description="Open it in this machine's browser.")

    @model_validator(mode="after")
    def _whole(self) -> Browser:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
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
    browser: Browser = Field(default_factory=Browser)


def _check(path: Path, target: Target, lines: Lines) -> None:
    from edgekd.profile.transport import TRANSPORTS, formats

    def refuse(key: str, text: str) -> None:
        raise UsageError(f"{key}: {text}", where=f"{path}:{lines.get((key,), 1)}")

    if target.transport not in TRANSPORTS.names():
        known = suggestion(target.transport, TRANSPORTS.names())
        refuse("transport", f"unknown transport {target.transport!r}{known}")
    runtimes = formats(target.transport)
    for runtime in target.runtimes:
        if runtime not in runtimes:
            known = suggestion(runtime, runtimes)
            refuse("runtimes", f"transport {target.transport} has no runtime {runtime!r}{known}")


TARGETS = Shelf("target", "targets", "profile.targets", Target, _check)
find = TARGETS.find
