"""`bundle`: a device that no network reaches; its result came back as a file."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from edgekd.errors import Waiting
from edgekd.profile.parcel import pack
from edgekd.profile.targets import Target
from edgekd.profile.transport import transport


@transport("bundle")
class Bundle:
    """Measures nothing: reads what `edgekd import` brought, if it is of this very plan."""

    by_hand: ClassVar = True

    def measure(
        self,
        target: Target,
        plan: dict[str, Any],
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Raises Waiting with the commands to run when there is no such result."""
        from edgekd.pipeline.run import Run
        from edgekd.profile import imported

        run = Run(Path(plan["root"]))
        path = imported.result_path(run, target.name)
        if not path.is_file():
            raise _waiting(target, run.path, "no result was imported yet")
        result = imported.read(path)
        different = imported.differences(result.manifest.plan, pack(plan).plan)
        if different:
            what = imported.listed(different)
            raise _waiting(target, run.path, f"the imported result is of something else: {what}")
        imported.unpack(result, folder)


def _waiting(target: Target, root: Path, why: str) -> Waiting:
    run = shlex.quote(str(root))
    return Waiting(
        f"waiting for a result: {why}",
        where=f"target {target.name}",
        fix=f"1. edgekd bundle {run} --target {target.name} -o bench.zip\n"
        "  2. on the device, unpacked: python3 bench.pyz\n"
        f"  3. edgekd import result.json --run {run}, then the same command again",
    )
