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
    """What this process has written to and shares with no other; None where the kernel does not say.

    The anonymous pages: `Private_Dirty` itself also counts the pages of a library that its file system
    has not written back.
    """
    try:
        match = re.search(r"^Anonymous:\s*(\d+) kB", _ROLLUP.read_text(), re.MULTILINE)
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
