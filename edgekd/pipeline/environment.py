"""What a run's results depend on besides its configuration: machine, versions, source revision."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from typing import Any

_PACKAGES = (
    "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "scikit-learn", "safetensors",
)  # fmt: skip


@functools.cache
def environment() -> dict[str, Any]:
    """Machine (CPU, ISA flags, governor, …), package versions, and the git revision worked in."""
    from edgekd.profile.device.environment import describe

    return {"machine": describe(), "packages": _versions(), "git": _git_revision()}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git_revision() -> str | None:
    """`git describe` of the current folder, or None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
