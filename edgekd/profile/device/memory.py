"""Resident memory of this process, in bytes."""

from __future__ import annotations

import gc
import re
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ROLLUP = Path("/proc/self/smaps_rollup")


def resident() -> int:
    """What is resident now, after collecting garbage."""
    gc.collect()
    return _field("VmRSS")


def private_dirty() -> int | None:
    """What this process alone holds and has written to; None where the kernel does not say.

    No other process can share it, and it cannot be read from its file again.
    """
    try:
        match = re.search(r"^Private_Dirty:\s*(\d+) kB", _ROLLUP.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(match[1]) if match else None


def peak() -> int:
    """The most that was resident since `reset_peak`, or since the process began."""
    return _field("VmHWM")


def reset_peak() -> bool:
    """Start a new peak at what is resident now; False where the kernel does not offer it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _field(name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{_STATUS} has no {name}")
    return 1024 * int(match[1])
