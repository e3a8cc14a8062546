"""`local`: the device part as a process on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.errors import StageError
from edgekd.profile.targets import Target
from edgekd.profile.transport import transport

_DEVICE = "edgekd.profile.device"
_ROOT = Path(__file__).parents[3]


@transport("local")
class Local:
    """No upload: the plan's paths are used as they are."""

    def measure(
        self,
        target: Target,
        plan: dict[str, Any],
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Run `python -m edgekd.profile.device measure`, passing its events on."""
        plan_path = folder / "plan.json"
        plan_path.write_text(json.dumps(plan))
        with (
            tempfile.TemporaryFile("w+", errors="replace") as log,
            subprocess.Popen(
                [sys.executable, "-m", _DEVICE, "measure", str(plan_path), str(folder)],
                stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(),
            ) as process,
        ):  # fmt: skip
            assert process.stdout is not None
            reason = ""
            try:
                for line in process.stdout:
                    event = json.loads(line)
                    reason = event.get("error", "")
                    if not reason:
                        tell(event)
            except BaseException:
                # Whatever stops us, Ctrl-C included, it must not go on measuring alone.
                process.terminate()
                raise
            if process.wait() != 0:
                log.seek(0)
                words = log.read().strip().splitlines()
                raise StageError(
                    f"measuring failed: {reason or (words[-1] if words else 'no reason given')}",
                    where=f"target {target.name}",
                )

    def describe(self, target: Target) -> dict[str, Any]:
        """What this machine and interpreter say of themselves."""
        done = subprocess.run(
            [sys.executable, "-m", _DEVICE, "describe", tempfile.gettempdir()],
            check=False, capture_output=True, text=True, errors="replace", env=_environment(),
        )  # fmt: skip
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or ["no reason given"]
            raise StageError(f"it cannot be asked: {words[-1]}", where=f"target {target.name}")
        description: dict[str, Any] = json.loads(done.stdout)
        return description


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1"}
