"""What a target lacks, and its descriptor from the live device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekd.config import units
from edgekd.config.units import format_quantity
from edgekd.errors import StageError, UsageError
from edgekd.profile.received import clean
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS, Describes

# Models, inputs and samples of a usual run; numpy and both runtimes, with pip's copies.
_ROOM, _ROOM_TO_INSTALL = 200 << 20, 1 << 30
# Of the nominal memory some is the firmware's and the GPU's.
_MEMORY_SHARE = (0.75, 1.05)
_HOT = 80.0


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class State(_Answer):
    """Of the moment; None is what the device does not say."""

    temperature_celsius: float | None
    throttle_count: int | None
    load_average: float | None


class Environment(_Answer):
    """The part of `device/environment.py` that is compared here."""

    cpu_model: str | None
    architecture: str
    usable_cores: int | None
    memory_bytes: int | None
    governor: str | None
    distribution: str | None
    python: str
    state: State


class Package(_Answer):
    """An installed package, or why it cannot be imported."""

    version: str | None
    error: str | None


class Description(_Answer):
    """What a device says of itself. `venv`: whether edgekd's own environment is made there.

    None where an existing interpreter is used.
    """

    environment: Environment
    executable: str
    packages: dict[str, Package]
    disk_free_bytes: int
    venv: Literal["ready", "possible", "impossible"] | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; a hint makes numbers worse, what is missing prevents them."""

    name: str
    status: Literal["ok", "hint", "missing"]
    text: str
    fix: str | None = None


def describe(target: Target) -> Description:
    """Ask the device.

    Raises UsageError for a transport that cannot, StageError when the device does not answer.
    """
    way = TRANSPORTS.get(target.transport)()
    if not isinstance(way, Describes):
        raise UsageError(
            f"a device that is reached by {target.transport!r} cannot be asked",
            where=f"target {target.name}",
        )
    try:
        return Description.model_validate(clean(way.describe(target)))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise StageError(
            f"the device's description cannot be used: {key}", where=f"target {target.name}"
        ) from None


def check(target: Target) -> list[Finding]:
    """Everything that measuring on `target` needs, and what would disturb it.

    Raises UsageError for a transport that cannot be asked.
    """
    try:
        about = describe(target)
    except StageError as error:
        return [Finding("reachable", "missing", error.what, error.fix)]
    return [
        Finding("reachable", "ok", f"by {target.transport}: {_summary(about.environment)}"),
        Finding("python", "ok", f"{about.environment.python}, {about.executable}"),
        *_packages(target, about),
        _disk(about),
        *_as_described(target, about.environment),
        *_disturbances(target, about.environment),
    ]


def _summary(environment: Environment) -> str:
    parts = (environment.cpu_model, environment.distribution)
    return ", ".join(part for part in parts if part) or environment.architecture


def _packages(target: Target, about: Description) -> list[Finding]:
    if about.venv == "possible":
        text = "edgekd installs them there at the first measurement"
        return [Finding(name, "ok", text) for name in ("numpy", *target.runtimes)]
    if about.venv == "impossible":
        text = f"{about.executable} cannot make an environment for numpy and the runtimes"
        fix = "Debian, Ubuntu: sudo apt install python3-venv; or set ssh.python"
        return [Finding("venv", "missing", text, fix)]
    return [_package(name, about) for name in ("numpy", *target.runtimes)]


def _package(name: str, about: Description) -> Finding:
    package = about.packages.get(name)
    if package is not None and package.version is not None:
        return Finding(name, "ok", package.version)
    why = (package and package.error) or "not installed"
    fix = f"{about.executable} -m pip install {name}"
    return Finding(name, "missing", why, fix)


def _disk(about: Description) -> Finding:
    free = about.disk_free_bytes
    needed = _ROOM_TO_INSTALL if about.venv == "possible" else _ROOM
    text = f"{format_quantity(free, 'bytes')} free"
    if free >= needed:
        return Finding("disk", "ok", text)
    return Finding("disk", "missing", text, f"make room for {format_quantity(needed, 'bytes')}")


def _as_described(target: Target, environment: Environment) -> list[Finding]:
    """The device against the descriptor; what that does not say is not compared."""
    found = []

    def compare(name: str, right: bool, text: str, expected: object) -> None:
        fix = None if right else f"the descriptor says {expected}; `edgekd targets probe` makes one"
        found.append(Finding(name, "ok" if right else "missing", text, fix))

    arch, cores, memory = (
        environment.architecture,
        environment.usable_cores,
        environment.memory_bytes,
    )
    if target.arch is not None:
        compare("architecture", arch == target.arch, arch, target.arch)
    if target.cores is not None and cores is not None:
        compare("cores", cores == target.cores, f"{cores} usable", target.cores)
    if target.memory is not None and memory is not None:
        low, high = (share * units.parse(target.memory, "bytes") for share in _MEMORY_SHARE)
        text = format_quantity(memory, "bytes")
        compare("memory", low <= memory <= high, text, target.memory)
    return found


def _disturbances(target: Target, environment: Environment) -> list[Finding]:
    cores, state, governor = environment.usable_cores, environment.state, environment.governor
    found = []
    if cores is not None and target.threads > cores:
        text = f"{target.threads} on {cores} usable cores"
        found.append(Finding("threads", "hint", text, "set threads to the number of cores or less"))
    if governor is not None:
        fixed = governor == "performance"
        fix = None if fixed else "sudo cpupower frequency-set -g performance"
        found.append(Finding("governor", "ok" if fixed else "hint", governor, fix))
    if state.throttle_count:
        text = f"the CPU has throttled {state.throttle_count} times since it started"
        found.append(Finding("throttling", "hint", text, "cool it, or see to its power supply"))
    if state.temperature_celsius is not None and state.temperature_celsius > _HOT:
        text = f"{state.temperature_celsius:.0f} °C"
        found.append(Finding("temperature", "hint", text, "cool it before measuring"))
    if state.load_average is not None and cores and state.load_average > 0.5 * cores:
        text = f"{state.load_average:.1f} on {cores} cores"
        found.append(Finding("load", "hint", text, "stop what else runs there"))
    return found


def probed(target: Target, *, known: bool = True) -> Target:
    """`target` as its live device is: architecture, cores, memory, and the runtimes it has.

    The class of one that was not `known` before is told from the architecture.
    Raises UsageError and StageError as `describe`, StageError for a device without any runtime.
    """
    about = describe(target)
    environment, memory = about.environment, about.environment.memory_bytes
    lacking = {f.name for f in _packages(target, about) if f.status == "missing"}
    runtimes = (
        [] if lacking & {"venv", "numpy"} else [r for r in target.runtimes if r not in lacking]
    )
    if not runtimes:
        raise StageError(
            f"{about.executable} lacks {', '.join(sorted(lacking))}",
            where=f"target {target.name}",
            fix="see `edgekd targets check`, or name another interpreter",
        )
    found: dict[str, Any] = {
        "description": target.description or _summary(environment),
        "runtimes": runtimes,
        "arch": environment.architecture.lower(),
        "cores": environment.usable_cores,
        "memory": None if memory is None else format_quantity(memory, "bytes"),
    }
    if not known:
        found["class"] = "cpu" if found["arch"] in ("x86_64", "amd64") else "edge"
    return Target.model_validate(target.model_dump(by_alias=True) | found)


def target_at(address: str, name: str | None = None) -> Target:
    """A target for `[user@]host[:port]` that nothing is known of; an IPv6 address with a port in [].

    Raises UsageError for what is no such address, or for a `name` that no target can have.
    """
    match = re.fullmatch(
        r"(?:(.+)@)?(?:\[([^\]]+)\]|([^:\[]+|[^\[]*:[^\[]*:[^\[]*))(?::(\d+))?", address
    )
    user, bracketed, plain, port = match.groups() if match else (None,) * 4
    host = bracketed or plain or ""
    ssh = {"host": host, "user": user, "port": None if port is None else int(port)}
    name = name or re.sub(r"[^a-z0-9._-]+", "-", host.lower()).strip("-._")[:64]
    try:
        return Target.model_validate(
            {"name": name, "class": "edge", "transport": "ssh", "ssh": ssh}
        )
    except ValidationError:
        raise UsageError(
            f"{address!r} is neither a known target nor [user@]host[:port] for one called {name!r}",
            where="edgekd targets",
        ) from None


def as_yaml(target: Target) -> str:
    """The text of its descriptor, without what is so anyway."""
    import yaml

    value = target.model_dump(mode="json", by_alias=True, exclude_none=True)
    if target.ssh is not None:
        value["ssh"] = target.ssh.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
