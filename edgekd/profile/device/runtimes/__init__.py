"""What executes a model. One file per runtime, registered by `@runtime`; each imports its runtime late."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

    # Of a model's only input, or by name where there are several.
    Inputs = np.ndarray | dict[str, np.ndarray]


class Session(Protocol):
    """One loaded model, ready to infer. `precision` is what the runtime says that it executes.

    `compile_seconds` is the part of loading that compiles; None where a runtime does not separate it.
    """

    precision: str
    compile_seconds: float | None

    def __init__(self, path: str, threads: int, precision: str) -> None:
        """Load the file. Raises ValueError when the runtime cannot execute that precision."""

    def set_inputs(self, x: Inputs) -> None:
        """Bind float32 inputs (n, …) for the `infer` calls to come."""

    def infer(self) -> int | None:
        """One inference of what is bound, with as little around it as the runtime allows.

        Its nanoseconds where the runtime tells them itself, without what Python adds; else None.
        """

    def run(self, x: Inputs) -> list[np.ndarray]:
        """The outputs for `x`, in the model's order."""

    @staticmethod
    def operators(
        path: str, threads: int, precision: str, x: np.ndarray, seconds: float
    ) -> dict[str, Any]:
        """Profile inferences of `x` for about `seconds`, in a session of its own.

        `runs`, `wall` (seconds of one whole inference while profiling) and `operators` (see
        `device/operators.py`).
        """

    @staticmethod
    def multiply(n: int, threads: int, precision: str) -> Callable[[], object]:
        """A function that multiplies two n×n matrices in f32, f16, bf16 or int8.

        Raises ValueError where the runtime does not compute in that precision.
        """

    @staticmethod
    def version() -> str:
        """The runtime's version."""

    @staticmethod
    def build() -> str:
        """What the runtime says of how it was built."""

    @staticmethod
    def warm() -> None:
        """Load the runtime with a model of one node: what a process needs before any real model."""


@dataclass(frozen=True)
class Runtime:
    """A registered runtime and the formats that it is meant for; it opens those of `also` too."""

    name: str
    formats: tuple[str, ...]
    session: type[Session]
    also: tuple[str, ...] = ()


RUNTIMES: dict[str, Runtime] = {}
S = TypeVar("S", bound=type[Session])


def runtime(name: str, *, formats: tuple[str, ...], also: tuple[str, ...] = ()) -> Callable[[S], S]:
    """Class decorator: register a Session as runtime `name` for files of these formats."""

    def decorate(session: S) -> S:
        RUNTIMES[name] = Runtime(name, formats, session, also)
        return session

    return decorate


def load(name: str, path: Path | str, *, threads: int, precision: str) -> Session:
    """Open a model file in a runtime, with pinned threads and precision (f32, f16 or bf16)."""
    return RUNTIMES[name].session(str(path), threads, precision)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
