"""What this device can do at most: arithmetic in the runtime itself, and copies in memory.

The two roofs of Williams, Waterman and Patterson (CACM 2009), measured in about a second and kept
in `$XDG_CACHE_HOME/edgekd/rooflines.json` on the device, so that none is measured twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .environment import describe
from .operators import repeat

_SIZES = (128, 256, 512, 1024)
_LONG = 0.05
_SECONDS = 0.15
_CACHED_BYTES = 128 << 10
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# What a peak depends on; a kernel update or another load average is no other device.
_MACHINE = (
    "cpu_model", "architecture", "usable_cores", "isa", "memory_bytes", "governor",
    "max_frequency_mhz", "turbo", "cgroup_cpu_limit",
)  # fmt: skip

# (n, threads, precision) -> one product of two n×n matrices in the runtime
Multiply = Callable[[int, int, str], Callable[[], object]]


def measure_roofline(
    multiply: Multiply, runtime: str, version: str, threads: int, precisions: list[str]
) -> dict[str, Any]:
    """FLOP/s by precision, and bytes/s of copies that need the memory and that fit the caches.

    The best of several tries, each: these are ceilings. Precisions that the runtime refuses are
    left out. `cached` says that the figures were measured earlier, on this machine.
    """
    machine = describe()
    identity = [{key: machine[key] for key in _MACHINE}, runtime, version, threads, precisions]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    store = _store()
    known = _read(store)
    if key in known:
        return {**known[key], "cached": True}
    peaks = {precision: _peak(multiply, threads, precision) for precision in precisions}
    found = {
        "runtime": runtime,
        "threads": threads,
        "flops": {precision: peak for precision, peak in peaks.items() if peak is not None},
        "bandwidth": _copy(_large(machine) // threads, threads),
        "cache_bandwidth": _copy(_CACHED_BYTES, threads),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    _write(store, {**_read(store), key: found})
    return {**found, "cached": False}


def _peak(multiply: Multiply, threads: int, precision: str) -> float | None:
    """FLOP/s of the best product, counting n³ multiplications and n³ additions."""
    best = 0.0
    for n in _SIZES:
        try:
            run = multiply(n, threads, precision)
            run()
        except (ValueError, RuntimeError):
            return None
        fastest = min(repeat(run, _SECONDS / len(_SIZES), least=3, most=1000))
        best = max(best, 2 * n**3 / fastest)
        if fastest > _LONG:
            break
    return best


def _copy(size: int, threads: int) -> float:
    """Bytes read and written per second by `threads` copies of `size` bytes each (STREAM copy)."""
    blocks = [(np.ones(size // 8), np.zeros(size // 8)) for _ in range(threads)]
    times = max(1, (1 << 20) // size)
    start = threading.Barrier(threads + 1)
    spent = [float("inf")] * threads

    def work(position: int) -> None:
        source, destination = blocks[position]
        start.wait()

        def copy() -> None:
            for _ in range(times):
                np.copyto(destination, source)

        spent[position] = min(repeat(copy, _SECONDS, least=3, most=10_000))

    workers = [threading.Thread(target=work, args=(position,)) for position in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    for worker in workers:
        worker.join()
    return sum(2 * size * times / seconds for seconds in spent)


def _large(machine: dict[str, Any]) -> int:
    """Four times the last-level cache, as STREAM asks for, within a sixteenth of the memory."""
    caches = [_cache_bytes(path) for path in _CACHES.glob("index*/size")]
    memory = [machine[key] for key in ("memory_bytes", "cgroup_memory_limit_bytes") if machine[key]]
    wanted = max(64 << 20, 4 * max(caches, default=0))
    return min(wanted, 1 << 29, max(16 << 20, min(memory, default=0) // 16))


def _cache_bytes(path: Path) -> int:
    try:
        text = path.read_text().strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def _store() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "edgekd" / "rooflines.json"


def _read(store: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        known = json.loads(store.read_text())
        if isinstance(known, dict):
            return known
    return {}


def _write(store: Path, known: dict[str, Any]) -> None:
    """Keep them if this device lets us; otherwise the next profile measures again."""
    with contextlib.suppress(OSError, RuntimeError):
        store.parent.mkdir(parents=True, exist_ok=True)
        temporary = store.with_name(f".{store.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=2))
        temporary.replace(store)
