"""Command line of the device part: a bundle's folder, `measure PLAN.json FOLDER`, `describe FOLDER`,
`session …`, `worker`.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

_told_to_end = threading.Event()


def _end(number: int, frame: object) -> None:
    _told_to_end.set()
    raise KeyboardInterrupt


def _say(event: dict[str, Any]) -> None:
    # An exception that a signal raised in a destructor, or in a callback of the collector, is lost.
    if _told_to_end.is_set():
        raise KeyboardInterrupt
    print(json.dumps(event), flush=True)


def _description(folder: Path) -> dict[str, Any]:
    """The machine, the interpreter, what it can import, and the room for `folder`."""
    from .environment import describe
    from .installed import packages
    from .runtimes import RUNTIMES

    return {
        "environment": describe(),
        "executable": sys.executable,
        "packages": packages(["numpy", *RUNTIMES]),
        "disk_free_bytes": shutil.disk_usage(folder).free,
    }


def main(arguments: list[str]) -> int:
    """0 done, 2 a bundle that cannot be used, 3 not measured (the last line says why), 130 interrupted."""
    if arguments == ["worker"]:
        from .worker import main as work

        work()
        return 0
    if arguments[:1] == ["session"]:
        from .session import main as serve

        serve(Path(arguments[1]), float(arguments[2]))
    if arguments[:1] == ["describe"]:
        _say(_description(Path(arguments[1])))
        return 0
    if arguments[:1] != ["measure"]:
        from .bundle import main as bench

        return bench(arguments)
    from .measure import MeasureError, measure

    _, plan, folder = arguments
    # Told to end, it leaves no worker and no control group behind.
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        measure(json.loads(Path(plan).read_text()), Path(folder), _say)
    except MeasureError as error:
        if _told_to_end.is_set():
            return 130
        _say({"error": str(error)})
        return 3
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
