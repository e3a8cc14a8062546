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

# Host and user may end up in a command line of the user's own ssh configuration (ProxyCommand %h %r).
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,252}$")]
User = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}$")]
# Whatever a file may be called, but for control characters; from the root or the home folder.
DevicePath = Annotated[str, Field(pattern=r"^~?/[^\x00-\x1f\x7f-\x9f]{0,1000}$")]
Seconds = Annotated[float, Field(ge=1, le=86_400)]


class Timeouts(Section):
    """Seconds."""

    connect: Seconds = Field(10, description="For one attempt to connect.")
    silence: Seconds = Field(
        30, description="A connection without a sign of life is lost; the device stops measuring."
    )
    reconnect: Seconds = Field(180, description="For a device to come back, after a reboot too.")
    lock: Seconds = Field(600, description="For another job that measures on the device.")
    setup: Seconds = Field(900, description="For making the environment on the device.")


class Ssh(Section):
    """How a device is reached by OpenSSH; what is not given is as in the user's ssh configuration."""

    host: Host = Field(description="Name, address or alias in the user's ssh configuration.")
    port: int | None = Field(None, ge=1, le=65_535)
    user: User | None = None
    identity: str | None = Field(
        None,
        pattern=r"^[^-\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        description="Private key file on this machine.",
    )
    folder: DevicePath = Field("~/.cache/edgekd", description="Where everything is kept there.")
    python: DevicePath | None = Field(
        None,
        description="Interpreter there that has numpy and the runtimes; null: edgekd makes an "
        "environment, with the versions that are installed here, by the device's python3.",
    )
    timeouts: Timeouts = Field(default_factory=Timeouts)

    @field_validator("folder")
    @classmethod
    def _no_way_up(cls, value: str) -> str:
        if ".." in value.split("/"):
            raise ValueError("should not contain '..'")
        return value


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
    emulated: bool = Field(
        False, description="Not the real device: its figures are labelled so. QEMU is noticed."
    )
    arch: Name | None = Field(None, description="As `uname -m` says: aarch64, x86_64; checked.")
    cores: int | None = Field(None, ge=1, le=4096, description="For `edgekd targets check`.")
    memory: str | None = Field(None, description='"4 GiB"; for `edgekd targets check`.')
    limits: Limits | None = Field(None, description="A smaller device, emulated on this one.")
    ssh: Ssh | None = Field(None, description="Where, for transport: ssh.")

    @field_validator("memory")
    @classmethod
    def _quantity(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse(value, "bytes")
        return value


def _check(path: Path, target: Target, lines: Lines) -> None:
    from edgekd.profile.device.runtimes import RUNTIMES
    from edgekd.profile.transport import TRANSPORTS

    def refuse(key: str, text: str) -> None:
        raise UsageError(f"{key}: {text}", where=f"{path}:{lines.get((key,), 1)}")

    if target.transport not in TRANSPORTS.names():
        known = suggestion(target.transport, TRANSPORTS.names())
        refuse("transport", f"unknown transport {target.transport!r}{known}")
    if target.transport == "ssh" and target.ssh is None:
        refuse("transport", "ssh needs the key `ssh`, such as `ssh: {host: my-device}`")
    if target.transport != "ssh" and target.ssh is not None:
        refuse("ssh", f"is for transport: ssh, not {target.transport}")
    for runtime in target.runtimes:
        if runtime not in RUNTIMES:
            refuse("runtimes", f"unknown runtime {runtime!r}{suggestion(runtime, RUNTIMES)}")


TARGETS = Shelf("target", "targets", "profile.targets", Target, _check)
find = TARGETS.find
