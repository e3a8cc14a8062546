"""The student against a baseline: the same test samples, and latency measured again, in turns, now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.config import units
from edgekd.config.schema import DIMENSIONS, Budget, Gate, Profile
from edgekd.errors import StageError, UsageError
from edgekd.gate.budget import shipped_variant, speaks_of
from edgekd.gate.counterparts import Baseline, Counterpart
from edgekd.gate.figures import Figure, enough, logits_name
from edgekd.gate.launches import LOOKS, Launch, compare, launches, mean_ratio, throttled
from edgekd.pipeline.run import Run
from edgekd.profile.measure import memory_ratio
from edgekd.profile.targets import Target
from edgekd.profile.transport import by_hand
from edgekd.progress import Progress
from edgekd.results import Interval, Measurement, Variant
from edgekd.tasks.task import of as of_task


@dataclass(frozen=True)
class Pair:
    """A measured file of the student and the baseline's beside it."""

    candidate: Measurement
    baseline: Counterpart


def figures(
    candidate: Run,
    baseline: Baseline,
    gate: Gate,
    targets: list[Target],
    profile: Profile,
    example: np.ndarray,
    progress: Progress,
) -> Iterator[Figure]:
    """Every `*_vs_baseline` figure of the student's files; `example` is inputs (n, …) float32.

    Raises UsageError when the two cannot be compared (`gate.allow` overrides), naming the
    difference; StageError when the device throttled while measuring.
    """
    yield from _accuracies(candidate, baseline)
    pairs = [
        Pair(m, found)
        for m in candidate.profile.measurements
        if m.role == "student" and (found := baseline.counterpart(m)) is not None
    ]
    if not pairs:
        raise UsageError(
            "has no student file for a target and runtime that was measured here",
            where=baseline.where,
        )
    by_name = {target.name: target for target in targets}
    shipped = shipped_variant(file.variant for file in candidate.files)
    asked = {id(pair): _budgets_on(pair, gate, shipped) for pair in pairs}
    timed = [pair for pair in pairs if asked[id(pair)]]
    again = [p for p in timed if _run_again(p, by_name[p.candidate.target], gate, baseline)]
    recorded = [pair for pair in timed if pair not in again]
    _check_comparable(candidate, baseline, recorded, gate.allow)
    with progress.task("against baseline", LOOKS[-1][0] * len(again)) as task:
        for pair in pairs:
            m = pair.candidate
            if pair in again:
                parts = _student_parts(candidate, m)
                source = launches(
                    parts, pair.baseline.parts, m.runtime, by_name[m.target], example,
                    profile.batch_size,
                )  # fmt: skip
                yield from _measured_again(m, source, gate, asked[id(pair)], task.advance)
            elif pair in recorded:
                yield from _recorded(pair)
            of = (m.runtime, m.target, True, m.variant, m.provenance)
            yield Figure("size_vs_baseline", m.size / pair.baseline.size, None, *of)


def _budgets_on(pair: Pair, gate: Gate, shipped: Variant) -> list[Budget]:
    """Those that need both of the pair measured."""
    m = pair.candidate
    figures = [
        Figure(metric, None, None, m.runtime, m.target, variant=m.variant)
        for metric in ("latency_vs_baseline", "memory_vs_baseline")
    ]
    return [b for b in gate.all_budgets if any(speaks_of(b, f, shipped) for f in figures)]


def _run_again(pair: Pair, target: Target, gate: Gate, baseline: Baseline) -> bool:
    """Whether the baseline is measured again beside the student, rather than read from its run."""
    if by_hand(target):
        if pair.baseline.record is None or gate.rerun_baseline:
            raise UsageError(
                "cannot be measured again in turns with the student: somebody would have to do it by "
                "hand two dozen times",
                where=f"{baseline.where}, target {target.name}",
                fix="compare with a run that was profiled there, and gate.rerun_baseline: null",
            )
        return False
    if gate.rerun_baseline and not pair.baseline.parts:
        raise UsageError(
            "its model files are gone, so that they cannot be measured again",
            where=baseline.where,
            fix="keep export/ and quantized/ of that run, or set gate.rerun_baseline: null",
        )
    if pair.baseline.record is None:
        return True
    return bool(pair.baseline.parts) and gate.rerun_baseline is not False


def _student_parts(run: Run, m: Measurement) -> list[Path]:
    file = next(file for file in run.files if file.path == m.path)
    return [run.path / m.path, *(run.path / part for part in file.files if part != m.path)]


def _measured_again(
    m: Measurement,
    source: Iterator[Launch],
    gate: Gate,
    budgets: list[Budget],
    advance: Callable[..., None],
) -> Iterator[Figure]:
    """Latency and memory from as many launches as the latency's budgets need and the time allows."""
    taken: list[Launch] = []

    def latencies() -> Iterator[float]:
        for launch in source:
            if launch.throttled and "throttled" not in gate.allow:
                raise StageError(
                    "the device throttled while it was measured against the baseline",
                    where=f"target {m.target}",
                    fix="let it cool down, or set gate.allow: [throttled]",
                )
            taken.append(launch)
            yield launch.latency

    of = (m.runtime, m.target)
    decided = _decided(budgets, "latency_vs_baseline")
    value, interval, done = compare(latencies(), decided, advance, gate.max_seconds)
    cut_short = not done and len(taken) < LOOKS[-1][0]
    note = f"{len(taken)} launches: gate.max_seconds allows no more" if cut_short else ""
    yield Figure(
        "latency_vs_baseline", value, interval, *of, True, m.variant, m.provenance, note=note
    )
    memories = [launch.memory for launch in taken if launch.memory is not None]
    # Where it cannot be told, the budget is undecided.
    ratio, bounds = mean_ratio(memories) if len(memories) == len(taken) else (None, None)
    yield Figure("memory_vs_baseline", ratio, bounds, *of, True, m.variant, m.provenance)


def _recorded(pair: Pair) -> Iterator[Figure]:
    """From what was measured then: the widest ratio that both intervals allow."""
    m, then = pair.candidate, pair.baseline.record
    assert then is not None
    of = partial(
        Figure,
        runtime=m.runtime,
        target=m.target,
        variant=m.variant,
        provenance=m.provenance,
        note="not run again",
    )
    low, high = m.latency.p50_interval
    interval = (low / then.latency.p50_interval[1], high / then.latency.p50_interval[0])
    ratio = m.latency.p50 / then.latency.p50
    conclusive = enough(m) and enough(then)
    yield of("latency_vs_baseline", ratio, interval, conclusive=conclusive)
    yield of("memory_vs_baseline", memory_ratio(m.memory, then.memory), None)


def _decided(budgets: list[Budget], metric: str) -> Callable[[Interval], bool]:
    """Whether an interval lies on one side of every limit on the metric."""
    limits = [units.parse(b.bound, DIMENSIONS[metric]) for b in budgets if b.metric == metric]
    return lambda interval: not any(interval[0] <= limit <= interval[1] for limit in limits)


def _accuracies(candidate: Run, baseline: Baseline) -> Iterator[Figure]:
    """Points lost on the same test samples, with the interval of the paired difference.

    Of accuracy, or of what another task has instead.
    """
    task = of_task(candidate.card("student").task)
    with np.load(candidate.path / "verify/logits.npz", allow_pickle=False) as now:
        labels, indices = now["labels"], now["indices"]
        for file in candidate.verify.files:
            if file.role != "student":
                continue
            then = baseline.logits(file, indices, labels)
            if then is None:
                continue
            lost, interval = task.lost(then, now[f"{file.runtime}/{logits_name(file)}"], labels)
            yield Figure(
                "accuracy_vs_baseline",
                lost,
                interval,
                file.runtime,
                variant=file.variant,
                note="" if task.metric == "accuracy" else task.label,
            )


def _check_comparable(
    candidate: Run, baseline: Baseline, pairs: list[Pair], allow: Collection[str]
) -> None:
    """Raises UsageError for records of which the difference would not be the student's."""
    for pair in pairs:
        m, then = pair.candidate, pair.baseline.record
        assert then is not None
        here = candidate.profile.environment[m.target]
        now = conditions(m, here)
        for name, before in conditions(then, pair.baseline.environment).items():
            if name in allow:
                continue
            if name == "machine" and before is None and now[name] is None:
                raise UsageError(
                    f"cannot be compared: neither run knows the machine of target {m.target}",
                    where=baseline.where,
                    fix="set gate.allow: [machine] if it is the same one",
                )
            if before != now[name] or (name == "throttled" and before):
                raise UsageError(
                    f"cannot be compared: {name} was {before}, now {now[name]}",
                    where=baseline.where,
                    fix=f"profile both in the same way, or set gate.allow: [{name}]",
                )


def conditions(m: Measurement, environment: dict[str, Any]) -> dict[str, object]:
    """What must be the same for two records to be compared."""
    return {
        "machine": environment.get("cpu_model"),
        "precision": m.precision,
        "threads": m.threads,
        "batch_size": m.latency.batch_size,
        "runtime_version": m.runtime_version,
        "limits": environment.get("emulated"),
        "throttled": throttled(environment),
    }
