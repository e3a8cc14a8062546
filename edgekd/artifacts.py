"""Files that are either whole or absent: atomic writes and content hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import StageError, UsageError

_UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def sha256_file(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits. Raises UsageError where it may not be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(path), fix="change its permissions"
        ) from None


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success flush it to disk and rename it.

    After an exception or a crash `path` is what it was before. Of a symbolic link the target is
    replaced; devices, pipes and the like cannot be renamed to, and are written into.
    Raises StageError when the disk is full, UsageError when the folder cannot be written.
    """
    with disk_errors(path):
        straight = is_special(path)
    with _into(path) if straight else _beside(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path`, or what `path` links to."""
    named, path = path, path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(named):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(named))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(named.parent)
                ) from None
            except FileNotFoundError as error:
                # As below /proc, where nothing can be made.
                raise UsageError(f"cannot be written: {error.strerror}", where=str(named)) from None
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(NotADirectoryError):  # below a file nothing was written
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Give a temporary folder below `folder`; on success move the files `names` from it to `folder`.

    For writers that choose the names of their files' parts themselves. All are flushed to disk
    before the first is moved, the first name last: who sees it sees the others. After an exception
    none is there. Raises like `atomic_path`.
    """
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as name:
        temporary = Path(name)
        yield temporary
        for part in names:
            with (temporary / part).open("rb+") as file:
                os.fsync(file.fileno())
        for part in reversed(names):
            (temporary / part).replace(folder / part)
        _sync_folder(folder)


@contextlib.contextmanager
def _into(path: Path) -> Iterator[Path]:
    """A temporary file, copied into `path` on success."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, disk_errors(path):
        temporary = Path(folder) / "contents"
        yield temporary
        # Appended: /dev/stdout may be a file that holds what was printed before.
        with temporary.open("rb") as source, path.open("ab") as file:
            shutil.copyfileobj(source, file)


def is_special(path: Path) -> bool:
    """Whether `path` is there and no regular file or folder, or a name of an open file (/dev/stdout)."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return True
    link = path.absolute()
    while link.is_symlink():
        link = link.parent / link.readlink()
        if link.is_relative_to("/proc"):
            return True
    return False


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that edgekd wrote.

    Raises UsageError when it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path)) from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise UsageError(
            f"not valid JSON: {error}",
            where=str(path),
            fix="this file is not what edgekd wrote; delete it and run again",
        ) from None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors around `path` into errors a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StageError(
                "the disk is full",
                where=str(path),
                fix="free some space and run the same command again; what is done is kept",
            ) from None
        if _unreadable(error):
            raise UsageError(
                f"cannot be read: {error.strerror}",
                where=str(error.filename),
                fix="change its permissions",
            ) from None
        if error.errno in _UNWRITABLE:
            raise UsageError(
                f"cannot be written: {error.strerror}",
                where=str(error.filename or path),
                fix="choose another folder with --out, or change its permissions",
            ) from None
        raise


def _unreadable(error: OSError) -> bool:
    """Whether it is of a file that is there, and may not be read."""
    if not isinstance(error, PermissionError) or not isinstance(error.filename, str | os.PathLike):
        return False
    return os.path.exists(error.filename) and not os.access(error.filename, os.R_OK)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
