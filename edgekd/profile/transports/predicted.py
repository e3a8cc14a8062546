"""`predicted`: the device is not attached; its cost model says how long models take on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from edgekd.errors import StageError
from edgekd.profile.targets import Target
from edgekd.profile.transport import transport


@transport("predicted")
class Predicted:
    """Measures nothing."""

    by_hand: ClassVar = True

    def measure(
        self,
        target: Target,
        plan: dict[str, Any],
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Raises StageError."""
        raise StageError(
            "nothing can be measured on it: it is not attached, its latency is only predicted",
            where=f"target {target.name}",
            fix="name a target with another transport for this",
        )
