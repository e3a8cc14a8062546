"""Make the device smaller than it is: fewer cores, less CPU time, less memory.

What is measured then is `emulated`: caches, memory bandwidth and clock stay those of this machine.
CPU time is limited by a control group (v2, or the v1 hierarchy where that is what there is): after its
share of each period is used up a process waits, so that short calls are as fast as ever, while the tail,
the mean and the throughput are not. Memory is limited by a control group of each model's own (v2; what is
resident, without swap) or else by RLIMIT_DATA (what is allocated to be written to, resident or not: a
little stricter). Either limit holds for the whole process, with Python and the runtime.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import cgroup_cpus, clusters

_ROOT = Path("/sys/fs/cgroup")
# Short, so that it shows in short calls too; the kernel takes no less than 1 ms of CPU time per period.
_PERIOD_US, _LEAST_US = 10_000, 1000


class LimitError(Exception):
    """A limit that this device cannot be held to; the text says why and what would help."""


@dataclass(frozen=True)
class Confines:
    """What a model's process has to do to be limited, and how it was done (for people)."""

    reasons: tuple[str, ...] = ()
    cpu_group: Path | None = None
    memory_parent: Path | None = None
    memory: int | None = None

    @contextlib.contextmanager
    def of_a_model(self) -> Iterator[Confinement]:
        """The confinement of one model, with a group of its own where memory is limited by one."""
        if self.memory_parent is None:
            groups = [str(self.cpu_group)] if self.cpu_group else []
            yield Confinement(groups, self.memory)
            return
        with _group(self.memory_parent) as group:
            (group / "memory.max").write_text(str(self.memory))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            yield Confinement([str(group)], None, group)


@dataclass(frozen=True)
class Confinement:
    """For `enter`: control groups, and bytes of RLIMIT_DATA."""

    groups: list[str]
    data: int | None
    memory_group: Path | None = None

    def killed(self) -> bool:
        """Whether the kernel killed a process for want of memory."""
        if self.memory_group is None:
            return False
        events = (self.memory_group / "memory.events").read_text().split()
        return int(dict(zip(events[::2], events[1::2])).get("oom_kill", 0)) > 0


def enter(groups: list[str], data: int | None) -> None:
    """Confine this process. Raises OSError."""
    for group in groups:
        (Path(group) / "cgroup.procs").write_text("0")
    if data is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))


@contextlib.contextmanager
def confines(wanted: dict[str, Any] | None) -> Iterator[Confines]:
    """Confine this process to the cores, and prepare what confines each model's.

    `wanted` may have `cpus` (a number, core numbers, "big" or "little"), `cpu_quota` (cores' worth of
    CPU time) and `memory` (bytes). Raises LimitError.
    """
    wanted = {key: value for key, value in (wanted or {}).items() if value is not None}
    quota, memory = wanted.get("cpu_quota"), wanted.get("memory")
    reasons = []
    with contextlib.ExitStack() as stack:
        if "cpus" in wanted:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            reasons.append(_pin(wanted["cpus"]))
        files = [name for name, limit in (("cpu.max", quota), ("memory.max", memory)) if limit]
        group = _version_2(stack, files) if files else None
        cpu_group = None
        if quota:
            cpu_group, how = _limit_cpu(stack, group, quota)
            reasons.append(f"{quota:g} of a core's time ({how})" if quota <= 1 else
                           f"{quota:g} cores' time ({how})")  # fmt: skip
        in_group = group is not None and _delegates_memory(group)
        if memory:
            how = "cgroup v2" if in_group else "RLIMIT_DATA"
            reasons.append(f"{memory / 2**20:g} MiB of memory ({how})")
        yield Confines(tuple(reasons), cpu_group, group if memory and in_group else None, memory)


def _pin(cpus: int | str | list[int]) -> str:
    """Stay on these cores, and the processes to come with us."""
    usable = sorted(os.sched_getaffinity(0))
    if isinstance(cpus, str):
        found = clusters()
        if len(found) < 2:
            raise LimitError(f"limits.cpus: {cpus}: all cores of this device are alike")
        chosen = found[-1 if cpus == "big" else 0]["cpus"]
    else:
        chosen = usable[:cpus] if isinstance(cpus, int) else cpus
    missing = sorted(set(chosen) - set(usable))
    if missing or (isinstance(cpus, int) and cpus > len(usable)):
        raise LimitError(f"limits.cpus: {cpus}: this device lets us use the cores {usable}")
    os.sched_setaffinity(0, chosen)
    name = f"{cpus} " if isinstance(cpus, str) else ""
    return f"{name}cores {', '.join(map(str, chosen))} of {os.cpu_count()}"


def _limit_cpu(
    stack: contextlib.ExitStack, group: Path | None, quota: float
) -> tuple[Path | None, str]:
    """The group that models have to enter, and how they are limited."""
    length = max(_PERIOD_US, round(_LEAST_US / quota))
    used, period = str(round(quota * length)), str(length)
    if group is not None and (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{used} {period}")
        return group, "cgroup v2"
    for base in _bases("cpu"):
        with contextlib.suppress(OSError):
            group = stack.enter_context(_group(base))
            (group / "cpu.cfs_period_us").write_text(period)
            (group / "cpu.cfs_quota_us").write_text(used)
            return group, "cgroup v1"
    there = cgroup_cpus()
    if there is not None and there <= quota:
        return None, f"the container's own limit of {there:g}"
    raise LimitError(
        "limits.cpu_quota needs a control group, and this user may not make one: run as root, or "
        f"in a container started with that limit (docker run --cpus {quota:g})"
    )


def _version_2(stack: contextlib.ExitStack, files: list[str]) -> Path | None:
    """A group below ours, or below one above it, that has the control `files`, or at least the first."""
    for needed in (files, files[:1]):
        for base in _bases(""):
            with contextlib.ExitStack() as attempt, contextlib.suppress(OSError):
                group = attempt.enter_context(_group(base))
                if all((group / name).exists() for name in needed):
                    stack.enter_context(attempt.pop_all())
                    return group
    return None


def _delegates_memory(group: Path) -> bool:
    """Let groups below this one limit memory."""
    with contextlib.suppress(OSError):
        (group / "cgroup.subtree_control").write_text("+memory")
        return True
    return False


def _bases(controller: str) -> list[Path]:
    """Our group in the hierarchy of a v1 controller ("" is v2) and those above it, nearest first."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller not in names.split(","):
            continue
        mount = _ROOT / names if names else _ROOT
        if not names and not (mount / "cgroup.controllers").exists():
            mount = _ROOT / "unified"
        own = mount / path.lstrip("/")
        return [own, *own.parents[: len(own.parts) - len(mount.parts)]]
    return []


@contextlib.contextmanager
def _group(base: Path) -> Iterator[Path]:
    """A new group, removed at the end. Raises OSError where we may not make one."""
    if not (base / "cgroup.procs").exists():
        raise FileNotFoundError(base)
    group = base / f"edgekd-{os.getpid()}-{time.monotonic_ns():x}"
    group.mkdir()
    try:
        yield group
    finally:
        for _ in range(20):
            # A process that has just ended may be in it for a moment more.
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)
