"""The student against a baseline's: the same test samples, and latency measured again, in turns, now.

Two processes of the very same file can differ by a percent or two for as long as they live (where
their memory happens to lie). A launch is therefore one observation: both files in fresh processes,
interleaved; its log-ratio of medians. Looks after 6, 12 and 24 launches, each with a 99 % t interval
(the three together err in at most 3 % of comparisons; Pocock 1977 would allow slightly narrower ones).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.config.schema import Gate, Profile
from edgekd.errors import UsageError
from edgekd.gate.budget import Figure
from edgekd.pipeline.run import Run
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS
from edgekd.progress import Progress
from edgekd.results import ExportedFile, Interval, Measurement, Parity
from edgekd.statistics import paired_difference

# Launches at each look, and the 99.5 % quantile of Student's t with one degree less.
LOOKS = ((6, 4.032), (12, 3.106), (24, 2.807))
_SECONDS = 0.4


@dataclass(frozen=True)
class Pair:
    """The candidate's and the baseline's measurement of the same kind of file in the same place."""

    candidate: Measurement
    baseline: Measurement


def figures(
    candidate: Run,
    baseline: Run,
    gate: Gate,
    targets: list[Target],
    profile: Profile,
    example: np.ndarray,
    progress: Progress,
) -> Iterator[Figure]:
    """Every `*_vs_baseline` figure of the student's files.

    Raises UsageError when the runs cannot be compared (`gate.allow` overrides), naming the difference.
    """
    yield from _accuracies(candidate, baseline)
    pairs = _pairs(candidate, baseline)
    _check_comparable(candidate, baseline, pairs, gate)
    limits = [b.bound for b in gate.all_budgets if b.metric == "latency_vs_baseline"]
    decided = _decided([_ratio(limit) for limit in limits])
    by_name = {target.name: target for target in targets}
    with progress.task("against baseline", LOOKS[-1][0] * len(pairs)) as task:
        for pair in pairs:
            m, base = pair.candidate, pair.baseline
            value, interval, conclusive = 1.0, None, True
            if limits:
                source = launches(
                    _parts(candidate, m.path), _parts(baseline, base.path), m.runtime,
                    by_name[m.target], example, profile.batch_size,
                )  # fmt: skip
                value, interval, conclusive = compare(source, decided, task.advance)
                yield Figure(
                    "latency_vs_baseline",
                    value,
                    interval,
                    m.runtime,
                    m.target,
                    conclusive,
                    m.variant,
                    m.provenance,
                )
            of = (m.runtime, m.target, True, m.variant, m.provenance)
            memory = max(1, m.memory.model) / max(1, base.memory.model)
            yield Figure("memory_vs_baseline", memory, None, *of)
            yield Figure("size_vs_baseline", m.size / base.size, None, *of)


def compare(
    source: Iterator[float],
    decided: Callable[[Interval], bool],
    advance: Callable[..., None] = lambda *_, **__: None,
) -> tuple[float, Interval, bool]:
    """Ratio, its interval, and whether `decided` was reached; takes launches until it is.

    `source` yields log-ratios. The interval is that of the mean log-ratio, as a ratio.
    """
    ratios: list[float] = []
    interval = (0.0, math.inf)
    for count, t in LOOKS:
        while len(ratios) < count:
            ratios.append(next(source))
            advance(1, ratio=f"{math.exp(np.mean(ratios)):.3f}")
        mean = float(np.mean(ratios))
        half = t * float(np.std(ratios, ddof=1)) / math.sqrt(count)
        interval = (math.exp(mean - half), math.exp(mean + half))
        if decided(interval):
            return math.exp(mean), interval, True
    return math.exp(float(np.mean(ratios))), interval, False


def _decided(limits: list[float]) -> Callable[[Interval], bool]:
    """Whether an interval lies on one side of every limit."""
    return lambda interval: not any(interval[0] <= limit <= interval[1] for limit in limits)


def _ratio(bound: str | float) -> float:
    from edgekd.config import units

    return units.parse(bound, "ratio")


def _parts(run: Run, path: str) -> list[Path]:
    """The file `path` of a run, then the further files that it consists of."""
    file = next(file for file in run.files if file.path == path)
    return [run.path / path, *(run.path / part for part in file.files if part != path)]


def launches(
    candidate: list[Path],
    baseline: list[Path],
    runtime: str,
    target: Target,
    example: np.ndarray,
    batch_size: int,
) -> Iterator[float]:
    """log(candidate's median / baseline's median) of one launch after another, without end.

    A model is its file and the further ones that belong to it; `example` is inputs (n, …) float32.
    Raises StageError when a file cannot be measured.
    """
    models = {"candidate": candidate, "baseline": baseline}
    while True:
        with tempfile.TemporaryDirectory(prefix="edgekd-gate-") as name:
            folder = Path(name)
            np.save(folder / "inputs.npy", example)
            plan: dict[str, Any] = {
                "models": [
                    {
                        "id": role,
                        "runtime": runtime,
                        "path": str(parts[0].resolve()),
                        "parts": [str(part.resolve()) for part in parts],
                        "threads": target.threads,
                        "precision": target.precision,
                    }
                    for role, parts in models.items()
                ],
                "inputs": str(folder / "inputs.npy"),
                "limits": target.limits and target.limits.for_device(),
                "phases": ["latency"],
                "batch_size": batch_size,
                "throughput_batch_size": batch_size,
                "interval": 0.5,
                "min_seconds": _SECONDS,
                "max_seconds": max(_SECONDS, 4.0),
            }
            TRANSPORTS.get(target.transport)().measure(target, plan, folder, lambda event: None)
            with np.load(folder / "samples.npz", allow_pickle=False) as samples:
                medians = {role: float(np.median(samples[f"{role}/latency"])) for role in models}
        # The other one is loaded first the next time.
        models = dict(reversed(models.items()))
        yield math.log(medians["candidate"] / medians["baseline"])


def _accuracies(candidate: Run, baseline: Run) -> Iterator[Figure]:
    """Points lost on the same test samples, with the interval of the paired difference."""
    with (
        np.load(candidate.path / "verify/logits.npz", allow_pickle=False) as now,
        np.load(baseline.path / "verify/logits.npz", allow_pickle=False) as then,
    ):
        same = np.array_equal(now["indices"], then["indices"])
        if not same or not np.array_equal(now["labels"], then["labels"]):
            raise UsageError(
                "was tested on other samples than this run",
                where=f"gate.baseline {baseline.path}",
                fix="use the same data, data.seed, data.test and data.limit in both",
            )
        labels = now["labels"]
        files = {_kind(p): p for p in baseline.verify.files if p.role == "student"}
        for file in candidate.verify.files:
            if file.role != "student" or _kind(file) not in files:
                continue
            key = f"{file.runtime}/{_name(file)}"
            right, before = (archive[key].argmax(1) == labels for archive in (now, then))
            lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
            yield Figure(
                "accuracy_vs_baseline",
                (lost - gained) / len(labels),
                paired_difference(lost, gained, len(labels)),
                file.runtime,
                variant=file.variant,
            )


def _kind(p: Parity) -> tuple[str, str, str]:
    return p.runtime, p.format, p.variant


def _name(file: Parity | ExportedFile) -> str:
    return file.role if file.variant == "f32" else f"{file.role}-{file.variant}"


def _pairs(candidate: Run, baseline: Run) -> list[Pair]:
    before = {
        (m.target, m.runtime, m.format, m.variant): m
        for m in baseline.profile.measurements
        if m.role == "student"
    }
    return [
        Pair(m, before[m.target, m.runtime, m.format, m.variant])
        for m in candidate.profile.measurements
        if m.role == "student" and (m.target, m.runtime, m.format, m.variant) in before
    ]


def _check_comparable(candidate: Run, baseline: Run, pairs: list[Pair], gate: Gate) -> None:
    """Raises UsageError for runs of which the difference would not be the student's."""
    if not pairs:
        raise UsageError(
            "has no student file that was measured on the same target and runtime",
            where=f"gate.baseline {baseline.path}",
        )
    differences: dict[str, tuple[object, object]] = {}
    for pair in pairs:
        for name in ("precision", "threads", "runtime_version"):
            now, then = getattr(pair.candidate, name), getattr(pair.baseline, name)
            if now != then:
                differences[name] = (then, now)
    for target in {pair.candidate.target for pair in pairs}:
        now, then = (
            run.profile.environment[target].get("cpu_model") for run in (candidate, baseline)
        )
        if now != then:
            differences["machine"] = (then, now)
        now, then = (
            run.profile.environment[target].get("emulated") for run in (candidate, baseline)
        )
        if now != then:
            differences["limits"] = (then, now)
    for name, (then, now) in differences.items():
        if name not in gate.allow:
            raise UsageError(
                f"cannot be compared: {name} was {then}, now {now}",
                where=f"gate.baseline {baseline.path}",
                fix=f"profile both in the same way, or set gate.allow: [{name}]",
            )
