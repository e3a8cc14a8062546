"""Quantities with their units written out: "20 ms", "8 MiB", "0.5 points"."""

from __future__ import annotations

import math
import re
from typing import Literal

Dimension = Literal["time", "bytes", "points", "share", "ratio", "rate", "number", "flop", "energy"]

# Factor to the base unit: seconds, bytes, a share in [0, 1], samples per second.
UNITS: dict[Dimension, dict[str, float]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0},
    "bytes": {
        "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
    },
    "points": {"point": 0.01, "points": 0.01, "pp": 0.01},
    "share": {"%": 0.01, "": 1.0},
    "ratio": {"x": 1.0, "times": 1.0, "": 1.0},
    "rate": {"/s": 1.0, "": 1.0},
    "energy": {"uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0},
    "number": {"": 1.0},
    "flop": {"FLOP": 1.0, "kFLOP": 1e3, "MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12},
}  # fmt: skip

_EXAMPLE: dict[Dimension, str] = {
    "time": "20 ms", "bytes": "8 MiB", "points": "0.5 points", "share": "97 %",
    "ratio": "3 x", "rate": "500 /s", "number": "1e-4", "flop": "20 MFLOP", "energy": "5 mJ",
}  # fmt: skip


def parse(value: str | float, dimension: Dimension) -> float:
    """Convert "20 ms" to base units (0.02). A bare number is allowed where no unit is usual.

    Raises ValueError with the accepted units.
    """
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*", str(value))
    units = UNITS[dimension]
    accepted = ", ".join(unit for unit in units if unit)
    if match is None or match[2] not in units:
        hint = f"a number with a unit ({accepted})" if accepted else "a number"
        raise ValueError(f"{value!r} should be {hint}, for example {_EXAMPLE[dimension]!r}")
    number = float(match[1]) * units[match[2]]
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is too large")
    return number


def format_quantity(value: float, dimension: Dimension) -> str:
    """The base-unit `value` as people read it: 0.00213 s → "2.13 ms"."""
    match dimension:
        case "time":
            for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
                if abs(value) >= factor:
                    return f"{value / factor:.3g} {unit}"
            return f"{value * 1e9:.3g} ns"
        case "bytes":
            for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
                if abs(value) >= factor:
                    return f"{_significant(value / factor)} {unit}"
            return f"{value:.0f} B"
        case "points":
            return f"{value * 100:.2f} points"
        case "share":
            return f"{value * 100:.2f} %"
        case "ratio":
            return f"{_significant(value)}×"
        case "energy":
            for unit, factor in (("J", 1.0), ("mJ", 1e-3)):
                if abs(value) >= factor:
                    return f"{value / factor:.3g} {unit}"
            return f"{value * 1e6:.3g} µJ"
        case "rate":
            return f"{value:,.0f} /s" if abs(value) >= 100 else f"{value:.3g} /s"
        case "number":
            return f"{value:.3g}"
        case "flop":
            for unit, factor in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
                if abs(value) >= factor:
                    return f"{_significant(value / factor)} {unit}"
            return f"{value:.0f} FLOP"


def _significant(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
