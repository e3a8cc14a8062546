"""One command: makes reviews and a teacher in a folder, then compresses it.

python examples/text/run.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import example  # noqa: E402
import reviews  # noqa: E402
import teacher  # noqa: E402


def prepare(folder: Path) -> None:
    """What is there already is not made again."""
    data = folder / "reviews"
    if not (data / "test.jsonl").is_file():
        reviews.write(data)
    if not (folder / "teacher/model.safetensors").is_file():
        print("training the teacher: about a minute", file=sys.stderr)
        teacher.train(data, folder / "teacher")


if __name__ == "__main__":
    example.main(HERE, __doc__, "runs/text-example", prepare)
