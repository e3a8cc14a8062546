"""One command: makes scenes in a folder, then trains a teacher and its student.

python examples/segmentation/run.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import example  # noqa: E402
import scenes  # noqa: E402


def prepare(folder: Path) -> None:
    """What is there already is not made again."""
    if not (folder / "scenes/classes.txt").is_file():
        scenes.write(folder / "scenes")


if __name__ == "__main__":
    example.main(HERE, __doc__, "runs/scenes-example", prepare)
