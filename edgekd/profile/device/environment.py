"""What this machine says of itself. A figure that it does not give is None, never a guess."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
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
_DMI = Path("/sys/devices/virtual/dmi/id")
# What a Raspberry Pi's firmware says; the low bits are now, the same 16 further up are since it started.
_PI_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_PI_WORDS = {
    0: "its supply voltage was too low", 1: "its frequency was capped", 2: "it throttled",
    3: "it reached its soft temperature limit",
}  # fmt: skip
# What may wait for a core, or be kept busy by others, before that is worth a word.
_WAITED, _OTHERS = 0.05, 0.25


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
        "core_clusters": clusters(),
        "smt": _flag(_CPU / "smt/active"),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None,
        "board": _text(Path("/proc/device-tree/model")) or _text(_DMI / "product_name"),
        "isa": [flag for flag in _ISA if flag in flags],
        "memory_bytes": _memory(),
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "max_frequency_mhz": _thousandth(_CPU / "cpu0/cpufreq/cpuinfo_max_freq"),
        "turbo": _turbo(),
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "hypervisor": "hypervisor" in flags if flags else None,
        "container": _container(),
        "cgroup_cpu_limit": cgroup_cpus(),
        "cgroup_memory_limit_bytes": _cgroup_memory(),
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
    """What changes while one measures: frequency, temperature, throttling, load, CPU time."""
    cpuinfo = _cpuinfo()
    mhz = _thousandth(_CPU / "cpu0/cpufreq/scaling_cur_freq")
    if mhz is None and cpuinfo.get("cpu MHz"):
        mhz = float(cpuinfo["cpu MHz"])
    return {
        "frequency_mhz": mhz,
        "temperature_celsius": _hottest(),
        "throttle_count": _throttled(),
        "firmware_throttled": _firmware_throttled(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu_seconds": _cpu_seconds(),
    }


def complaints(
    before: dict[str, Any],
    after: dict[str, Any],
    cores: int | None,
    threads: int = 1,
    own: float | None = None,
) -> list[str]:
    """Why a measurement between two `state`s may be noisy, each in one line.

    `cores` is how many the machine has, `threads` how many a model used, `own` the CPU seconds that
    measuring itself took.
    """
    found = []
    load = before["load_average"]
    if load is not None and cores and load > 0.5 * cores:
        found.append(f"the load average was {load:.1f} on {cores} cores before measuring")
    return found + throttling(before, after) + _taken(before, after, cores, threads, own)


def throttling(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the CPU and the board's firmware say that slowed them down between two `state`s."""
    found = []
    if (after["throttle_count"] or 0) > (before["throttle_count"] or 0):
        found.append("the CPU throttled while measuring")
    then, now = before.get("firmware_throttled"), after.get("firmware_throttled")
    if then is not None and now is not None:
        # Active at the end, or for the first time since the start: the firmware counts no more.
        raised = (now & 0xFFFF) | ((now & ~then) >> 16)
        found += [f"the board says: {text}" for bit, text in _PI_WORDS.items() if raised >> bit & 1]
    return found


def noise(waited: float | None, seconds: float) -> list[str]:
    """Whether a model whose calls took `seconds` `waited` for a core for much of that."""
    if not waited or not seconds or waited / seconds < _WAITED:
        return []
    return [f"it had to wait for a core for {waited / seconds:.0%} of the time"]


def waited_for_core(process: int | str = "self") -> float | None:
    """Seconds that a process's threads could have run but had no core; None where Linux counts not."""
    times = [_text(path) for path in Path(f"/proc/{process}/task").glob("*/schedstat")]
    known = [int(text.split()[1]) / 1e9 for text in times if text and len(text.split()) == 3]
    return sum(known) if known else None


def _taken(
    before: dict[str, Any],
    after: dict[str, Any],
    cores: int | None,
    threads: int,
    own: float | None,
) -> list[str]:
    """CPU time that went to the hypervisor, and to other processes on cores that we might need."""
    if not before["cpu_seconds"] or not after["cpu_seconds"]:
        return []
    spent = {
        key: after["cpu_seconds"][key] - before["cpu_seconds"][key] for key in after["cpu_seconds"]
    }
    if spent["all"] <= 0:
        return []
    found = []
    if spent["stolen"] / spent["all"] > 0.01:
        found.append(
            f"the hypervisor took {spent['stolen'] / spent['all']:.0%} of the CPU time away"
        )
    if own is not None and cores and "busy" in spent:
        others = (spent["busy"] - own) / (spent["all"] / cores)
        if others > max(0.1, _OTHERS * (cores - threads)):
            found.append(f"other processes kept {others:.1f} of {cores} cores busy while measuring")
    return found


def clusters() -> list[dict[str, Any]]:
    """Groups of alike cores, the slowest first: `cpus`, `max_frequency_mhz`, `capacity` (of 1024).

    big.LITTLE, and the performance and efficiency cores of x86; one group where all are alike.
    """
    found: dict[tuple[float, float], list[int]] = {}
    for path in _CPU.glob("cpu[0-9]*"):
        kind = (
            _number(path / "cpu_capacity") or 0,
            _thousandth(path / "cpufreq/cpuinfo_max_freq") or 0,
        )
        found.setdefault(kind, []).append(int(path.name[3:]))
    return [
        {"cpus": sorted(cpus), "max_frequency_mhz": mhz or None, "capacity": capacity or None}
        for (capacity, mhz), cpus in sorted(found.items())
    ]


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


def _flag(path: Path) -> bool | None:
    number = _number(path)
    return None if number is None else number == 1


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


def cgroup_cpus() -> float | None:
    """Cores' worth of CPU time that our control group allows; None without a limit."""
    quota, _, period = (_text(Path("/sys/fs/cgroup/cpu.max")) or "").partition(" ")
    if not period:
        v1 = Path("/sys/fs/cgroup/cpu")
        quota, period = (_text(v1 / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _cgroup_memory() -> int | None:
    v2 = _number(Path("/sys/fs/cgroup/memory.max"))
    v1 = _number(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    # v1 writes "no limit" as the largest number of pages that it can count.
    return v2 if v2 is not None else v1 if v1 is not None and v1 < 2**60 else None


def _hottest() -> float | None:
    zones = Path("/sys/class/thermal").glob("thermal_zone*/temp")
    degrees = [value for zone in zones if (value := _thousandth(zone)) is not None]
    return max(degrees, default=None)


def _throttled() -> int | None:
    counts = [_number(path) for path in _CPU.glob("cpu*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _firmware_throttled() -> int | None:
    """The flags of a Raspberry Pi's firmware, from the kernel or from its own tool."""
    text = _text(_PI_THROTTLED)
    tool = shutil.which("vcgencmd") if text is None else None
    if tool:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run(
                [tool, "get_throttled"], check=False, capture_output=True, text=True, timeout=2
            ).stdout
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})\s*", text or "")
    return int(match[1], 16) if match else None


def _cpu_seconds() -> dict[str, float] | None:
    """CPU time of the whole machine since it started: all, what was used, what the hypervisor withheld."""
    line = (_text(Path("/proc/stat")) or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    values = [int(value) / ticks for value in line[1:9]]
    idle = values[3] + values[4]
    return {"all": sum(values), "busy": sum(values) - idle - values[7], "stolen": values[7]}
