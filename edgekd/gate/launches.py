"""Two models against each other in fresh processes, again and again, until the difference is decided.

Two processes of the very same file can differ by a percent or two for as long as they live (where
their memory happens to lie). A launch is therefore one observation: both files in fresh processes,
interleaved; the median over rounds of the log-ratio of their blocks' medians, so that a neighbour that
comes and goes slows both of a pair. Looks after 6, 12 and 24 launches, each with a 99 % t interval
(the three together err in at most 3 % of comparisons; Pocock 1977 would allow slightly narrower ones).
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.profile.statistics import block_medians
from edgekd.profile.targets import Target
from edgekd.profile.transport import TRANSPORTS
from edgekd.results import Interval

# Launches at each look, and the 99.5 % quantile of Student's t with one degree less.
LOOKS = ((6, 4.032), (12, 3.106), (24, 2.807))
_SECONDS = 0.4


@dataclass(frozen=True)
class Launch:
    """One observation: log(candidate / baseline) of the latency and of the model's memory.

    `memory` is None where the device cannot tell it (a browser); `throttled`
    is whether the device slowed itself down meanwhile.
    """

    latency: float
    memory: float | None
    throttled: bool


def launches(
    candidate: list[Path],
    baseline: list[Path],
    runtime: str,
    target: Target,
    example: np.ndarray,
    batch_size: int,
) -> Iterator[Launch]:
    """One launch after another, without end.

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
                blocks = {
                    role: block_medians(
                        samples[f"{role}/latency"], samples[f"{role}/latency/rounds"]
                    )
                    for role in models
                }
            result = json.loads((folder / "result.json").read_text())
        # The other one is loaded first the next time.
        models = dict(reversed(models.items()))
        yield Launch(
            latency=paired(blocks["candidate"], blocks["baseline"]),
            memory=_memory_ratio(result["models"]),
            throttled=throttled(result["environment"]),
        )


def compare(
    source: Iterator[float],
    decided: Callable[[Interval], bool],
    advance: Callable[..., None] = lambda *_, **__: None,
    seconds: float = math.inf,
) -> tuple[float, Interval, bool]:
    """Ratio, its interval, and whether `decided` was reached; takes launches until it is.

    `source` yields log-ratios. The interval is that of the mean log-ratio, as a ratio. After the first
    look it ends, undecided, where the next one would be later than `seconds` after the start.
    """
    ratios: list[float] = []
    started = time.monotonic()
    for count, _ in LOOKS:
        each = (time.monotonic() - started) / max(1, len(ratios))
        if ratios and each * count > seconds:
            break
        while len(ratios) < count:
            ratios.append(next(source))
            advance(1, ratio=f"{math.exp(np.mean(ratios)):.3f}")
        if decided(mean_ratio(ratios)[1]):
            return *mean_ratio(ratios), True
    return *mean_ratio(ratios), False


def mean_ratio(log_ratios: list[float]) -> tuple[float, Interval]:
    """The mean of as many log-ratios as a look has, as a ratio, with its 99 % t interval."""
    t = dict(LOOKS)[len(log_ratios)]
    mean = float(np.mean(log_ratios))
    half = t * float(np.std(log_ratios, ddof=1)) / math.sqrt(len(log_ratios))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


def paired(candidate: Mapping[int, float], baseline: Mapping[int, float]) -> float:
    """The median over the rounds that both have of log(candidate / baseline)."""
    both = candidate.keys() & baseline.keys()
    return float(np.median([math.log(candidate[r] / baseline[r]) for r in both]))


def throttled(environment: dict[str, Any]) -> bool:
    """Whether the device slowed itself down between the states before and after measuring."""
    before, after = (
        (environment.get(state) or {}).get("throttle_count") or 0
        for state in ("state", "state_after")
    )
    return bool(after > before)


def _memory_ratio(models: dict[str, dict[str, Any]]) -> float | None:
    """Of the bytes that each model needed, at least a page: the peak less the runtime without it."""
    if any(model.get("peak_rss") is None for model in models.values()):
        return None
    needed = {role: max(4096, m["peak_rss"] - m["baseline_rss"]) for role, m in models.items()}
    return math.log(needed["candidate"] / needed["baseline"])
