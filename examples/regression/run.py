"""One command: makes pulses in a folder, then trains a teacher and its student.

python examples/regression/run.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import example  # noqa: E402
import pulses  # noqa: E402


def prepare(folder: Path) -> None:
    """What is there already is not made again."""
    if not (folder / "pulses/Pulses_TEST.ts").is_file():
        pulses.write(folder / "pulses")


if __name__ == "__main__":
    example.main(HERE, __doc__, "runs/pulse-example", prepare)
