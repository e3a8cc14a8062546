"""Several processes on one run, started by torchrun: the first runs the line, the others help train."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekd.config.schema import Config
from edgekd.pipeline.run import Run
from edgekd.progress import Silent

# Stages whose work every process does; its files are the first one's alone.
TRAINING = ("teacher", "distill")


def follows() -> bool:
    """Whether this process is one that helps. Imports no torch where there is only one."""
    return several() and int(os.environ.get("RANK", "0")) > 0


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Around the line in the first process: at the end, the others are told to go home."""
    if not several():
        yield
        return
    from edgekd.distill import parallel

    parallel.join()
    try:
        yield
    finally:
        announce(None)
        parallel.leave()


def announce(stage: str | None) -> None:
    """Tell the others which stage is worked on now, if they are to help; None: there is no more."""
    if several() and (stage is None or stage in TRAINING):
        from edgekd.distill import parallel

        parallel.told(stage)


def follow(config: Config, base: Path, out: Path) -> None:
    """Train with the first process whatever it trains, until there is no more."""
    from edgekd.distill import parallel
    from edgekd.pipeline.stages import LINE, Context

    parallel.join()
    work = {stage.name: stage.work for stage in LINE if stage.name in TRAINING}
    try:
        while (name := parallel.told("")) is not None:
            with tempfile.TemporaryDirectory() as folder:  # what it writes is thrown away
                work[name](Context(config, base, Run(out), Path(folder), Silent()))
    finally:
        parallel.leave()


def several() -> bool:
    """Whether torchrun started more than one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
