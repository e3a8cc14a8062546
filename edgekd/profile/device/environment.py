"""What this machine says of itself. A figure that it does not give is None, never a guess."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

# What the runtimes' kernels are chosen by, on x86-64 and aarch64.
_ISA = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
_CPU = Path("/sys/devices/system/cpu")


def describe() -> dict[str, Any]:
    """CPU, memory, system, limits, and the state of the moment (see `state`)."""
    fake = emulated()
    cpuinfo = _cpuinfo() if fake is None else {}  # it would be that of the machine underneath
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "cpu_model": cpuinfo.get("model name") or cpuinfo.get("Model") or _board(),
        "architecture": platform.machine(),
        "emulated": fake,
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "isa": [flag for flag in _ISA if flag in flags],
        "memory_bytes": _memory(),
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "max_frequency_mhz": _thousandth(_CPU / "cpu0/cpufreq/cpuinfo_max_freq"),
        "turbo": _turbo(),
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "hypervisor": "hypervisor" in flags if flags else None,
        "container": _container(),
        "cgroup_cpu_limit": _cgroup_cpus(),
        "cgroup_memory_limit_bytes": _number(Path("/sys/fs/cgroup/memory.max")),
        "python": platform.python_version(),
        "state": state(),
    }


def emulated() -> str | None:
    """What only pretends to be this CPU, so that no speed is a device's; None where nothing tells.

    A user-mode emulator (QEMU, FEX, Rosetta) is what the kernel really executes. It answers for
    /proc/self itself, but not for /proc/thread-self: there is another program, of another machine.
    """
    real = "/proc/thread-self/exe"
    try:
        name = os.path.basename(os.readlink(real))
    except OSError:
        name = ""
    machines = _elf_machine(real), _elf_machine(sys.executable)
    if name.startswith("qemu-") or (None not in machines and machines[0] != machines[1]):
        return f"{name or 'another program'} executes this {platform.machine()} program"
    model = _cpuinfo().get("model name", "")
    return f"the CPU is {model}" if "QEMU TCG" in model else None


def state() -> dict[str, Any]:
    """What changes while one measures: frequency, temperature, throttling, load, stolen time."""
    cpuinfo = _cpuinfo()
    mhz = _thousandth(_CPU / "cpu0/cpufreq/scaling_cur_freq")
    if mhz is None and cpuinfo.get("cpu MHz"):
        mhz = float(cpuinfo["cpu MHz"])
    busy = _cpu_seconds()
    return {
        "frequency_mhz": mhz,
        "temperature_celsius": _hottest(),
        "throttle_count": _throttled(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu_seconds": busy,
    }


def complaints(before: dict[str, Any], after: dict[str, Any], cores: int | None) -> list[str]:
    """Why a measurement between two `state`s may be noisy, each in one line."""
    found = []
    load = before["load_average"]
    if load is not None and cores and load > 0.5 * cores:
        found.append(f"the load average was {load:.1f} on {cores} cores before measuring")
    if (after["throttle_count"] or 0) > (before["throttle_count"] or 0):
        found.append("the CPU throttled while measuring")
    if before["cpu_seconds"] and after["cpu_seconds"]:
        total = after["cpu_seconds"]["all"] - before["cpu_seconds"]["all"]
        stolen = after["cpu_seconds"]["stolen"] - before["cpu_seconds"]["stolen"]
        if total > 0 and stolen / total > 0.01:
            found.append(f"the hypervisor took {stolen / total:.0%} of the CPU time away")
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None


def _thousandth(path: Path) -> float | None:
    number = _number(path)
    return None if number is None else number / 1000


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries."""
    entries: dict[str, str] = {}
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    return entries


def _board() -> str | None:
    return _text(Path("/proc/device-tree/model")) or platform.processor() or None


def _elf_machine(path: str) -> int | None:
    """The instruction set that a program file is for, as ELF numbers them."""
    try:
        with open(path, "rb") as file:
            header = file.read(20)
    except OSError:
        return None
    if header[:4] != b"\x7fELF":
        return None
    return int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _turbo() -> bool | None:
    no_turbo = _number(_CPU / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = _number(_CPU / "cpufreq/boost")
    return None if boost is None else boost == 1


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except (OSError, AttributeError):  # Python 3.9 cannot tell
        return sys.platform


def _container() -> bool:
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return True
    return any(
        word in (_text(Path("/proc/1/cgroup")) or "") for word in ("docker", "kubepods", "lxc")
    )


def _cgroup_cpus() -> float | None:
    """Cores' worth of CPU time that cgroup v2 allows; None without a limit."""
    quota, _, period = (_text(Path("/sys/fs/cgroup/cpu.max")) or "").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _hottest() -> float | None:
    zones = Path("/sys/class/thermal").glob("thermal_zone*/temp")
    degrees = [value for zone in zones if (value := _thousandth(zone)) is not None]
    return max(degrees, default=None)


def _throttled() -> int | None:
    counts = [_number(path) for path in _CPU.glob("cpu*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _cpu_seconds() -> dict[str, float] | None:
    """CPU time of the whole machine since it started, and what of it the hypervisor withheld."""
    line = (_text(Path("/proc/stat")) or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    values = [int(value) / ticks for value in line[1:9]]
    return {"all": sum(values), "stolen": values[7]}
