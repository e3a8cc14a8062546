"""Energy of the processor packages, where Linux tells it (RAPL, through powercap).

It is that of everything that runs on them, idle power and neighbours included; since 2020 only root
may read it (CVE-2020-8694). Boards that have no such counters say nothing: then there is no figure.
"""

from __future__ import annotations

from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


def counters() -> dict[str, int] | None:
    """Microjoules of every package since some moment; None where they cannot be read."""
    found = {}
    for path in sorted(_POWERCAP.glob("*-rapl:*")):
        try:
            if (path / "name").read_text().startswith("package"):
                found[path.name] = int((path / "energy_uj").read_text())
        except (OSError, ValueError):
            return None
    return found or None


def joules(before: dict[str, int] | None, after: dict[str, int] | None) -> float | None:
    """What was spent between two readings; a counter that is full starts again at zero."""
    if before is None or after is None or before.keys() != after.keys():
        return None
    total = 0
    for name, start in before.items():
        spent = after[name] - start
        if spent < 0:
            spent += int((_POWERCAP / name / "max_energy_range_uj").read_text())
        total += spent
    return total / 1e6
