"""One command: speaks words into `runs/keywords-example`, then trains a teacher and its student.

python examples/keywords/run.py [FOLDER]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import words  # noqa: E402

import edgekd  # noqa: E402


def main(folder: Path) -> None:
    """What is there already is not made again."""
    if not (folder / "words/testing_list.txt").is_file():
        words.write(folder / "words")
    config = folder / "compress.yaml"
    shutil.copyfile(HERE / "compress.yaml", config)
    run = edgekd.compress(config, out=folder / "run")
    print(f"{run.gate.verdict}: {run.path / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/keywords-example"))
