"""Which precisions the deployed files are verified in."""

from __future__ import annotations

from pathlib import Path

from edgekd.config.schema import Config
from edgekd.profile.targets import find


def lower_precisions(config: Config, base: Path) -> list[tuple[str, str]]:
    """The (runtime, precision) other than f32 that the configured targets compute in."""
    targets = [find(name, base) for name in config.profile.targets]
    return sorted(
        {(runtime, t.precision) for t in targets for runtime in t.runtimes if t.precision != "f32"}
    )
