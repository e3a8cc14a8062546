"""More samples for a verdict that is still open: those files measured again, each time twice as long."""

from __future__ import annotations

import dataclasses
import io
import time

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure, measured
from edgekd.pipeline.stages import Context
from edgekd.profile.measure import profile
from edgekd.profile.targets import find
from edgekd.profile.transport import by_hand
from edgekd.results import GateReport, ProfileReport

_TIMED = {
    "latency_p50", "latency_p90", "latency_p95", "latency_p99", "speedup", "throughput",
}  # fmt: skip
# Target, runtime, variant.
Place = tuple[str, str, str]


def settle(context: Context, found: list[Figure]) -> tuple[GateReport, list[Figure]]:
    """The verdicts on `found`, and what they speak of; open ones on time are measured longer first.

    Every look is a new measurement, twice as long as the one before it, until the budgets are decided
    or `gate.max_seconds` of measuring are over. The last of each place are kept in the stage's folder.
    """
    gate = context.config.gate
    report = check_budgets(gate, found)
    unattended = {
        name for name in context.config.profile.targets if not by_hand(find(name, context.base))
    }
    seconds, left = 4 * context.config.profile.min_seconds, gate.max_seconds
    while (open_ := _open(report, unattended)) and left > 0:
        started = time.monotonic()
        for place in open_:
            found = _replaced(found, place, _measure(context, place, min(seconds, left)))
        report = check_budgets(gate, found)
        left -= time.monotonic() - started
        seconds *= 2
    return report, found


def _open(report: GateReport, targets: set[str]) -> list[Place]:
    """Where, of these targets, an undecided budget needs more samples of time."""
    places = (
        (check.target or "", check.runtime, check.variant)
        for check in report.checks
        if check.verdict == "inconclusive"
        and check.metric in _TIMED
        and check.value is not None
        and check.target in targets
    )
    return list(dict.fromkeys(places))


def _measure(context: Context, place: Place, seconds: float) -> list[Figure]:
    """The timed figures of one place, from `seconds` of measuring for each model."""
    name, runtime, variant = place
    settings = context.config.profile
    target = find(name, context.base).model_copy(update={"runtimes": [runtime]})
    files = tuple(
        file
        for file in context.run.files
        if file.variant == (variant if file.role == "student" else "f32")
    )
    context.progress.say(f"  undecided: {runtime} on {name} is measured again for {seconds:.0f} s")
    longer = settings.model_copy(
        # No interval is narrow enough: the time is to be used.
        update={
            "interval": 1e-6,
            "min_seconds": seconds,
            "max_seconds": seconds,
            "operators": False,
        }
    )
    dataset = context.dataset
    most = max(settings.batch_size, settings.throughput_batch_size)
    report, samples, _ = profile(
        files, [target], longer, dataset.tensor(dataset.test[:most]).numpy(),
        root=context.run.path, progress=context.progress,
    )  # fmt: skip
    _keep(context, place, report, samples)
    # Whether the interval is narrow enough is for the budget to say.
    return [
        dataclasses.replace(
            figure, conclusive=True, note=f"measured again for {seconds:.0f} s", again=True
        )
        for figure in measured(report)
        if figure.metric in _TIMED
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

    kept = [f for f in found if not (of_place(f) and f.metric in _TIMED)]
    return kept + [figure for figure in newer if of_place(figure)]
