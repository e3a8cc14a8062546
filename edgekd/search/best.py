"""What a search found, as a configuration beside the one that was searched; one edited since is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from edgekd.artifacts import disk_errors, is_special, write_text
from edgekd.errors import UsageError

_MADE = "# Found by edgekd search"
_DIGEST = "# sha256 of what follows: "


def check_best(path: Path, base: Path) -> None:
    """Raises UsageError for a place that the winner cannot be written to, or should not."""
    if is_special(path):
        return
    if path.is_dir():
        raise UsageError(f"is a folder: {path}", where="--best", fix="name a file in it")
    if path.absolute().parent.resolve() != base.resolve():
        raise UsageError(
            f"{path} is in another folder than CONFIG, where its relative paths start",
            where="--best",
            fix=f"name a file in {base}",
        )
    if path.exists() and not _untouched(path):
        raise UsageError(
            f"{path} exists, and edgekd search has not written it, or it was changed since",
            where="--best",
            fix="name another file with --best, or move that one away",
        )
    try:
        with disk_errors(path), tempfile.NamedTemporaryFile(dir=path.absolute().parent):
            pass
    except UsageError:
        raise UsageError(
            f"{path} cannot be written", where="--best", fix="name another file with --best"
        ) from None


def write_best(path: Path, value: dict[str, Any], page: Path) -> None:
    """Replace it. Raises UsageError when it was changed by hand meanwhile; `page` has what was found."""
    import yaml

    if not is_special(path) and path.exists() and not _untouched(path):
        raise UsageError(
            f"{path} was changed during the search",
            where="--best",
            fix="move it away and run the same command again: nothing is trained twice",
        )
    body = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    # A line break in the name of a folder must not end the comment.
    shown = os.fspath(page).replace("\n", "?").replace("\r", "?")
    write_text(path, f"{_MADE}: see {shown}\n{_DIGEST}{_digest(body)}\n{body}")


def _untouched(path: Path) -> bool:
    """Whether it is, to the letter, what a search wrote."""
    with disk_errors(path):
        first, _, rest = path.read_bytes().decode(errors="replace").partition("\n")
    second, _, body = rest.partition("\n")
    return first.startswith(_MADE) and second == f"{_DIGEST}{_digest(body)}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
