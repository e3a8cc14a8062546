"""Target descriptors: one YAML file per device, in `targets/` of edgekd and of the user's project."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from edgekd.config import units
from edgekd.config.load import Lines
from edgekd.config.schema import Positive, Precision, Section
from edgekd.config.shelf import Shelf
from edgekd.errors import UsageError
from edgekd.registry import suggestion

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Isa = Literal[
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve"
]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]

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


def _address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} should be an IP address, such as 127.0.0.1") from None


class Browser(Section):
    """Where the page for `transport: browser` is served."""

    host: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1", description="An address of this machine; 0.0.0.0: all of them."
    )
    port: int = Field(0, ge=0, le=65_535, description="0: any that is free.")
    wait_seconds: Positive = Field(600.0, description="How long to wait for somebody to open it.")
    certificate: str | None = Field(None, description="PEM file for https, with its key.")
    key: str | None = None
    open: bool = Field(False, description="Open it in this machine's browser.")

    @model_validator(mode="after")
    def _whole(self) -> Browser:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
        return self


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
    emulated: bool = Field(
        False, description="Not the real device: its figures are labelled so. QEMU is noticed."
    )
    arch: Name | None = Field(None, description="As `uname -m` says: aarch64, x86_64; checked.")
    isa: list[Isa] | None = Field(
        None,
        description="What its CPU has of VNNI, AMX and Arm's dot product, as /proc/cpuinfo says it; "
        "INT8 files get the types that suit it.",
    )
    cores: int | None = Field(None, ge=1, le=4096, description="For `edgekd targets check`.")
    memory: str | None = Field(None, description='"4 GiB"; for `edgekd targets check`.')
    limits: Limits | None = Field(None, description="A smaller device, emulated on this one.")
    adb: Adb | None = Field(None, description="For transport adb.")
    ssh: Ssh | None = Field(None, description="Where, for transport: ssh.")
    browser: Browser | None = Field(None, description="The page, for transport: browser.")
    cost_model: FileName | None = Field(
        None,
        description="Of `edgekd targets calibrate`, a file in a targets folder; null: NAME.cost.json.",
    )

    @field_validator("memory")
    @classmethod
    def _quantity(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse(value, "bytes")
        return value

    @property
    def predicted(self) -> bool:
        """Whether the device is not attached, so that only a cost model speaks for it."""
        return self.transport == "predicted"


def _check(path: Path, target: Target, lines: Lines) -> None:
    from edgekd.profile.transport import TRANSPORTS, formats

    def refuse(key: str, text: str) -> None:
        raise UsageError(f"{key}: {text}", where=f"{path}:{lines.get((key,), 1)}")

    if target.transport not in TRANSPORTS.names():
        known = suggestion(target.transport, TRANSPORTS.names())
        refuse("transport", f"unknown transport {target.transport!r}{known}")
    if target.transport == "ssh" and target.ssh is None:
        refuse("transport", "ssh needs the key `ssh`, such as `ssh: {host: my-device}`")
    if target.transport != "ssh" and target.ssh is not None:
        refuse("ssh", f"is for transport: ssh, not {target.transport}")
    if target.transport != "browser" and target.browser is not None:
        refuse("browser", f"is for transport: browser, not {target.transport}")
    if target.transport == "browser" and target.limits is not None:
        refuse("limits", "a browser cannot be held to limits")
    runtimes = formats(target.transport)
    for runtime in target.runtimes:
        if runtime not in runtimes:
            known = suggestion(runtime, runtimes)
            refuse("runtimes", f"transport {target.transport} has no runtime {runtime!r}{known}")
    if (target.transport == "adb") != (target.adb is not None):
        refuse("transport" if target.adb is None else "adb", "transport: adb goes with adb: {…}")
    if target.adb is not None and target.adb.runner is not None:
        from edgekd.profile.native.tool import TOOLS

        known = TOOLS.get(target.adb.runner).runtime
        if target.runtimes != [known]:
            refuse("runtimes", f"{target.adb.runner} runs {known}: write runtimes: [{known}]")


TARGETS = Shelf("target", "targets", "profile.targets", Target, _check)
find = TARGETS.find
