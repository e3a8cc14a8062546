"""Which finished stages still hold, after a command that stopped before the end of the line."""

from __future__ import annotations

from edgekd.pipeline.run import Run, StageRecord
from edgekd.pipeline.stages import NAMES


def standing(run: Run, *, intact: bool = False) -> dict[str, StageRecord]:
    """The finished stages that were made from what is there now, in the order of the line.

    A verdict on files that were made anew since is none. With `intact`, a stage whose own files are
    missing or were changed is left out, too.
    """
    recorded = run.manifest.stages
    held: dict[str, StageRecord] = {}
    there: dict[str, str] = {}
    for name in NAMES:
        record = recorded.get(name)
        if record is None or (intact and not run.intact(record)):
            continue
        # Unknown in runs of earlier versions, which are believed.
        inputs = record.inputs or {}
        if any(there.get(path) != digest for path, digest in inputs.items()):
            continue
        held[name] = record
        there |= {path: artifact.sha256 for path, artifact in record.artifacts.items()}
    return held
