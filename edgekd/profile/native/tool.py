"""What a native tool is: its command line, and its output as figures. One file each, `@tool`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgekd.errors import StageError
from edgekd.registry import Registry
from edgekd.results import SampleKind


@dataclass(frozen=True)
class Job:
    """One run of a tool: a model file and a folder to write to, both on the device."""

    model: str
    folder: str
    shape: tuple[int, ...]
    dynamic: bool
    threads: int
    precision: str
    calls: int


@dataclass(frozen=True)
class Figures:
    """What one run gave. `samples` in seconds: of every call, or the run's median alone."""

    samples: np.ndarray
    median: float
    load: float
    first: float
    precision: str
    version: str


class Tool(Protocol):
    """A benchmark program. Text and reports come from the device: parsing trusts none of it."""

    runtime: str
    kind: SampleKind
    report: str

    def one_node(self, folder: Path) -> list[Path]:
        """A model of one node with input (1,): what a process needs before any real model."""

    def describe(self, path: Path) -> tuple[str, bool]:
        """Of a model file here: the precision it is executed in, and whether shapes are free."""

    def beside(self, inputs: np.ndarray) -> dict[str, bytes]:
        """What the tool wants beside the model, by relative path."""

    def arguments(self, job: Job) -> list[str]:
        """The command line after the program; it leaves `report` in the job's folder."""

    def figures(self, job: Job, printed: str, report: bytes) -> Figures:
        """Parse one run. Raises StageError when anything is missing, malformed or out of range."""


TOOLS: Registry[type[Tool]] = Registry("native runner", "edgekd.profile.native")
tool = TOOLS.register


def seconds(text: str | bytes | float, what: str, unit: float = 1.0) -> float:
    """A finite, non-negative time below a day. Raises StageError."""
    try:
        value = float(text) * unit
    except (ValueError, TypeError):
        value = math.nan
    if not 0 <= value < 86400:
        raise StageError(f"the tool reports {what} of {str(text)[:40]!r}")
    return value


def printed(patterns: Sequence[str], text: str, what: str) -> str:
    """The first group of the first pattern that occurs in the text. Raises StageError."""
    for pattern in patterns:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            return match[1]
    raise StageError(
        f"the tool's output has no {what}", fix="use a release of the tool that prints it"
    )
