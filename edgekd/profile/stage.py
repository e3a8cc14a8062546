"""Stage `profile`: latency, throughput and memory of every exported file on every target."""

from __future__ import annotations

import io

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.pipeline.stages import Context
from edgekd.profile.measure import profile
from edgekd.profile.targets import find


def run(context: Context) -> None:
    """Write `profile.json`, and `samples.npz` with every sample."""
    settings, dataset = context.config.profile, context.dataset
    most = max(settings.batch_size, settings.throughput_batch_size)
    report, samples = profile(
        context.run.files,
        [find(name, context.base) for name in settings.targets],
        settings,
        dataset.tensor(dataset.test[:most]).numpy(),
        root=context.run.path,
        progress=context.progress,
    )
    for warning in report.warnings:
        context.progress.say(f"  note: {warning}")
    report.write(context.folder / "profile.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **samples)  # type: ignore[arg-type]
    write_bytes(context.folder / "samples.npz", buffer.getvalue())
