"""What is sent to a device: the device part as one file, and a plan whose files are named by content."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from edgekd.artifacts import sha256_file, sha256_json

_DEVICE = Path(__file__).parent / "device"
_PACKAGE = "edgekd_device"
_MAIN = f"""import sys

from {_PACKAGE}.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Parcel:
    """A plan for another machine: its paths are relative to a folder there.

    `files` maps each of these paths (and the further parts of models, which lie beside them) to
    the file here. A path contains the SHA-256 of what it names: what the device has under that
    path is what would be sent.
    """

    plan: dict[str, Any]
    files: dict[str, Path]


def pack(plan: dict[str, Any]) -> Parcel:
    """The portable form of a plan (see `device/measure.py`) whose models also list their `parts`.

    Its `root` stays here.
    """
    files: dict[str, Path] = {}

    def add(path: str, parts: list[str]) -> str:
        here = [Path(part) for part in parts]
        there = content_path(here)
        files.update(zip(there, here, strict=True))
        return str(PurePosixPath(there[0]).parent / Path(path).name)

    models = [{**model, "path": add(model["path"], model["parts"])} for model in plan["models"]]
    for model in models:
        del model["parts"]
    inputs = add(plan["inputs"], [plan["inputs"]])
    sent = {key: value for key, value in plan.items() if key != "root"}
    return Parcel({**sent, "models": models, "inputs": inputs}, files)


def content_path(files: list[Path]) -> list[str]:
    """Paths in a folder that is named by the SHA-256 of all the files' names and contents."""
    hashes = {path.name: sha256_file(path) for path in files}
    folder = PurePosixPath("files", sha256_json(hashes)[:32])
    return [str(folder / path.name) for path in files]


@cache
def runner() -> bytes:
    """The device part as a zipapp: `python3 runner.pyz measure PLAN.json FOLDER`.

    The same bytes for the same source, so that its hash is its version.
    """
    sources = sorted(path for path in _DEVICE.rglob("*.py"))
    contents = {f"{_PACKAGE}/{path.relative_to(_DEVICE).as_posix()}": path.read_bytes()
                for path in sources} | {"__main__.py": _MAIN.encode()}  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def runner_name() -> str:
    """`runner-<hash>.pyz`: another version is another file."""
    return f"runner-{hashlib.sha256(runner()).hexdigest()[:32]}.pyz"
