"""What the examples share: each makes its data in a folder, then runs `edgekd compress` on it."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from edgekd.cli import main as edgekd


def main(here: Path, what: str | None, default: str, prepare: Callable[[Path], None]) -> None:
    """`prepare(folder)` makes what is missing there; `here` has the compress.yaml. Exits as edgekd does."""
    parser = argparse.ArgumentParser(description=(what or "").partition("\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(default), help=f"default: {default}"
    )
    folder: Path = parser.parse_args().folder
    shipped, config = here / "compress.yaml", folder / "compress.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        if not config.exists():
            shutil.copyfile(shipped, config)
        elif config.read_bytes() != shipped.read_bytes():
            print(f"{config} is not {shipped} any more: it is used as it is", file=sys.stderr)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    edgekd(["compress", str(config), "--out", str(folder / "run")])
