"""Command line of the device part: `measure PLAN.json FOLDER` or `worker`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main(arguments: list[str]) -> int:
    """0 done, 3 a model could not be measured (the last line says why), 130 interrupted."""
    if arguments == ["worker"]:
        from .worker import main as work

        work()
        return 0
    from .measure import MeasureError, measure

    command, plan, folder = arguments
    assert command == "measure"
    # Told to end, it leaves no worker and no control group behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
