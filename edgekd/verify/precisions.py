"""Which precisions the deployed files are verified in."""

from __future__ import annotations

from pathlib import Path

from edgekd.config.schema import Config
from edgekd.profile.targets import find


def lower_precisions(config: Config, base: Path) -> list[str]:
    """The precisions other than f32 that the configured targets compute in."""
    found = {find(name, base).precision for name in config.profile.targets}
    return sorted(found - {"f32"})
