"""Target descriptors: one YAML file per device, in `targets/` of edgekd and of the user's project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgekd.config.load import read_yaml, validate_as
from edgekd.config.schema import Precision, Section
from edgekd.errors import UsageError
from edgekd.registry import suggestion

# In a source tree beside the package; in an installed one inside it.
_SHIPPED = (Path(__file__).parents[2] / "targets", Path(__file__).parents[1] / "targets")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Target(Section):
    """A device and how models are measured on it."""

    name: Name = Field(description="As in profile.targets; the same as the file's name.")
    kind: Literal["cpu", "mobile", "edge"] = Field(alias="class")
    description: str = ""
    transport: Name = Field("local", description="How the device is reached.")
    runtimes: list[Name] = Field(["onnxruntime", "openvino"], min_length=1)
    threads: int = Field(1, ge=1, le=1024, description="Inference threads.")
    precision: Precision = Field("f32", description="What the runtime must execute.")


def find(name: str, base: Path) -> Target:
    """The target called `name`. Raises UsageError naming the known ones, or what is wrong in its file."""
    for folder in _folders(base):
        path = folder / f"{name}.yaml"
        if "/" not in name and path.is_file():
            return read(path)
    known = [path.stem for path in _files(base)]
    raise UsageError(
        f"unknown target {name!r}{suggestion(name, known)}",
        where="profile.targets",
        fix="`edgekd targets list` shows them; add your own as targets/NAME.yaml",
    )


def available(base: Path) -> dict[Path, Target]:
    """Every target by its file; a user's own hides a shipped one of the same name."""
    return {path: read(path) for path in _files(base)}


def read(path: Path) -> Target:
    """One descriptor. Raises UsageError with file, line and key for whatever is wrong in it."""
    from edgekd.profile.device.runtimes import RUNTIMES
    from edgekd.profile.transport import TRANSPORTS

    value, lines = read_yaml(path)
    target = validate_as(Target, value, where=str(path), lines=lines)

    def refuse(key: str, text: str) -> None:
        raise UsageError(f"{key}: {text}", where=f"{path}:{lines.get((key,), 1)}")

    if target.name != path.stem:
        refuse("name", f"is {target.name!r}, but the file is called {path.name}")
    if target.transport not in TRANSPORTS.names():
        known = suggestion(target.transport, TRANSPORTS.names())
        refuse("transport", f"unknown transport {target.transport!r}{known}")
    for runtime in target.runtimes:
        if runtime not in RUNTIMES:
            refuse("runtimes", f"unknown runtime {runtime!r}{suggestion(runtime, RUNTIMES)}")
    return target


def _folders(base: Path) -> list[Path]:
    """Nearest first: beside the configuration, in the current folder, shipped with edgekd."""
    return [base / "targets", Path("targets"), *_SHIPPED]


def _files(base: Path) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in _folders(base):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]
