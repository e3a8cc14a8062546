"""What a run's results depend on besides its configuration: machine, versions, source revision."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "numpy", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino", "scikit-learn",
    "safetensors",
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


@dataclass(frozen=True)
class GitState:
    """The commit a folder is at, whether tracked files differ from it, and its branch."""

    commit: str | None
    dirty: bool | None
    branch: str | None


def git_state(folder: Path) -> GitState:
    """The state of the repository around `folder`; all None outside one."""
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return GitState(None, None, None)
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    return GitState(commit, None if changed is None else changed != "", _branch(folder))


def _branch(folder: Path) -> str | None:
    """The branch; what CI says of it where the head is detached, as it is there."""
    branch = _git(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
    variables = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BRANCH_NAME")
    return branch or next((os.environ[v] for v in variables if os.environ.get(v)), None)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None when it fails. It runs no program that the repository names."""
    command = [
        "git",
        "--no-optional-locks",
        "-c",
        "core.fsmonitor=false",
        "-C",
        str(folder),
        *arguments,
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
