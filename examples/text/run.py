"""One command: makes reviews and a teacher in `runs/text-example`, then compresses it.

python examples/text/run.py [FOLDER]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reviews  # noqa: E402
import teacher  # noqa: E402

import edgekd  # noqa: E402


def main(folder: Path) -> None:
    """What is there already is not made again."""
    data = folder / "reviews"
    if not (data / "test.jsonl").is_file():
        reviews.write(data)
    if not (folder / "teacher/model.safetensors").is_file():
        print("training the teacher: about a minute", file=sys.stderr)
        teacher.train(data, folder / "teacher")
    config = folder / "compress.yaml"
    shutil.copyfile(HERE / "compress.yaml", config)
    run = edgekd.compress(config, out=folder / "run")
    print(f"{run.gate.verdict}: {run.path / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/text-example"))
