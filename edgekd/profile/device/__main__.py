"""Command line of the device part: `measure PLAN.json FOLDER`, `worker`, or a bundle's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main(arguments: list[str]) -> int:
    """0 done, 2 a bundle that cannot be used, 3 not measured (the last line says why), 130 interrupted."""
    if arguments == ["worker"]:
        from .worker import main as work

        work()
        return 0
    if arguments[:1] != ["measure"]:
        from .bundle import main as bench

        return bench(arguments)
    from .measure import MeasureError, measure

    _, plan, folder = arguments
    try:
        measure(json.loads(Path(plan).read_text()), Path(folder), _say)
    except MeasureError as error:
        _say({"error": str(error)})
        return 3
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
