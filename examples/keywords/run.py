"""One command: speaks words into a folder, then trains a teacher and its student.

python examples/keywords/run.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import example  # noqa: E402
import words  # noqa: E402


def prepare(folder: Path) -> None:
    """What is there already is not made again."""
    if not (folder / "words/testing_list.txt").is_file():
        words.write(folder / "words")


if __name__ == "__main__":
    example.main(HERE, __doc__, "runs/keywords-example", prepare)
