"""Stage `profile`: latency, throughput, memory and operators of every file on every target."""

from __future__ import annotations

import io

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.pipeline.stages import Context
from edgekd.profile.measure import profile
from edgekd.profile.targets import find


def run(context: Context) -> None:
    """Write `profile.json`, `samples.npz` with every sample, and `operators.json` if asked for."""
    settings, dataset = context.config.profile, context.dataset
    most = max(settings.batch_size, settings.throughput_batch_size)
    targets = [find(name, context.base) for name in settings.targets]
    report, samples, operators = profile(
        context.run.files,
        [target for target in targets if not target.predicted],
        settings,
        dataset.tensor(dataset.test[:most]).numpy(),
        root=context.run.path,
        progress=context.progress,
    )
    if any(target.predicted for target in targets):
        from edgekd.profile.predict.forecast import with_predictions

        report = with_predictions(report, context.run, targets, settings, context.base)
    for warning in (*report.warnings, *(operators.notes if operators else ())):
        context.progress.say(f"  note: {warning}")
    if operators is not None:
        operators.write(context.folder / "operators.json")
    report.write(context.folder / "profile.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **samples)  # type: ignore[arg-type]
    write_bytes(context.folder / "samples.npz", buffer.getvalue())
