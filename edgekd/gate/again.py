"""A second look for a verdict that is still open: those files measured again, until it is decided."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Iterable

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.config import units
from edgekd.config.schema import Gate, Profile, dimension
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure, measured
from edgekd.pipeline.stages import Context
from edgekd.profile.measure import profile
from edgekd.profile.targets import find
from edgekd.profile.transport import by_hand, formats
from edgekd.results import Check, GateReport, ProfileReport

TIMED = {
    "latency_p50", "latency_p90", "latency_p95", "latency_p99", "speedup", "throughput",
}  # fmt: skip
# The metrics whose interval a profile watches while it measures.
_WATCHED = {"latency_p50", "throughput"}
# No interval is as narrow: all the time is used.
_NEVER = 1e-6
# Target, runtime, variant.
Place = tuple[str, str, str]


def settle(context: Context, found: list[Figure]) -> tuple[GateReport, list[Figure]]:
    """The verdicts on `found`, and what they speak of; open ones on time are measured once more.

    The second look is a measurement of its own: a 95 % interval errs to one side in 2.5 % of looks,
    so that of the verdicts on a student that is exactly at its limit the two together get at most
    5 % wrong. Its places share `gate.max_seconds`, each until its interval should decide. What was
    measured is kept in the stage's folder.
    """
    gate = context.config.gate
    report = check_budgets(gate, found)
    unattended = {
        name for name in context.config.profile.targets if not by_hand(find(name, context.base))
    }
    open_ = _open(report, unattended)
    ends = time.monotonic() + gate.max_seconds
    for done, (place, checks) in enumerate(open_.items()):
        seconds = (ends - time.monotonic()) / (len(open_) - done)
        if seconds <= 0:
            break
        newer = _measure(context, place, seconds, width_to_decide(gate, checks))
        found = _replaced(found, place, newer)
    return check_budgets(gate, found), found


def _open(report: GateReport, targets: set[str]) -> dict[Place, list[Check]]:
    """Where, of these targets, undecided budgets need more samples of time."""
    places: dict[Place, list[Check]] = {}
    for check in report.checks:
        if (
            check.verdict == "inconclusive"
            and check.metric in TIMED
            and check.value is not None
            and check.target in targets
            and check.provenance != "predicted"
        ):
            place = (check.target or "", check.runtime, check.variant)
            places.setdefault(place, []).append(check)
    return places


def width_to_decide(gate: Gate, checks: Iterable[Check]) -> float:
    """How narrow an interval must be, as a share of its figure, to decide these checks.

    Half the distance between figure and limit, at least 0.5 %. It is known before the second look
    begins: ending at a width is no peeking at the outcome (Chow and Robbins 1965).
    """
    widths = []
    for check in checks:
        if check.metric not in _WATCHED or not check.value:
            return _NEVER
        for budget in gate.all_budgets:
            limit = units.parse(budget.bound, dimension(budget.metric))
            if budget.metric == check.metric and limit > 0:
                widths.append(abs(math.log(check.value / limit)) / 2)
    return min(max(min(widths, default=_NEVER), 0.005), 0.5)


def longer(settings: Profile, seconds: float, models: int, width: float) -> Profile:
    """Settings that measure for `seconds` in all, or until all intervals are below `width`."""
    each = seconds / (2 * models)  # latency, then throughput
    return settings.model_copy(
        update={
            "interval": width,
            "min_seconds": min(settings.min_seconds, each),
            "max_seconds": each,
            "operators": False,
            "multistream": False,
        }
    )


def _measure(context: Context, place: Place, seconds: float, width: float) -> list[Figure]:
    """The timed figures of one place, from at most `seconds` of measuring."""
    name, runtime, variant = place
    settings = context.config.profile
    target = find(name, context.base).model_copy(update={"runtimes": [runtime]})
    files = tuple(
        file
        for file in context.run.files
        if file.variant == (variant if file.role == "student" else "f32")
    )
    context.progress.say(
        f"  undecided: {runtime} on {name} is measured again, for up to {seconds:.0f} s"
    )
    dataset = context.dataset
    most = max(settings.batch_size, settings.throughput_batch_size)
    models = sum(file.format in formats(target.transport).get(runtime, ()) for file in files)
    started = time.monotonic()
    report, samples, _ = profile(
        files, [target], longer(settings, seconds, max(1, models), width),
        dataset.tensor(dataset.test[:most]).numpy(), root=context.run.path,
        progress=context.progress,
    )  # fmt: skip
    _keep(context, place, report, samples)
    note = f"measured again for {time.monotonic() - started:.0f} s"
    return [
        dataclasses.replace(figure, note=note, again=True)
        for figure in measured(report)
        if figure.metric in TIMED
    ]


def _keep(
    context: Context, place: Place, report: ProfileReport, samples: dict[str, np.ndarray]
) -> None:
    name = "-".join(place)
    report.write(context.folder / f"{name}.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **samples)  # type: ignore[arg-type]
    write_bytes(context.folder / f"{name}.npz", buffer.getvalue())


def _replaced(found: list[Figure], place: Place, newer: list[Figure]) -> list[Figure]:
    """`found` with the timed figures of a place from the later measurement."""

    def of_place(figure: Figure) -> bool:
        return (figure.target, figure.runtime, figure.variant) == place

    kept = [f for f in found if not (of_place(f) and f.metric in TIMED)]
    return kept + [figure for figure in newer if of_place(figure)]
