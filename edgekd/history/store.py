"""The history as one SQLite file: appended to by every gate, also by several at once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from edgekd.errors import UsageError
from edgekd.history.entry import Entry

# Where it is unless the configuration says otherwise, below the folder of the configuration.
DEFAULT = ".edgekd/history.sqlite"
# "edkd": tells a history from any other database.
_APPLICATION = 0x65646B64
# Seconds to wait for another writer.
_PATIENCE = 10.0
_ELSEWHERE = "change its permissions, or name another file"

# The statements that bring a file from each version (PRAGMA user_version) to the next. Only add.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE figures (
            "identity" TEXT NOT NULL UNIQUE, "point" TEXT NOT NULL,
            "time" TEXT NOT NULL, "run" TEXT NOT NULL,
            "commit" TEXT, "dirty" INTEGER, "branch" TEXT,
            "config" TEXT NOT NULL, "artifact" TEXT,
            "target" TEXT, "device" TEXT, "runtime" TEXT NOT NULL, "runtime_version" TEXT,
            "precision" TEXT, "threads" INTEGER, "batch_size" INTEGER, "variant" TEXT NOT NULL,
            "metric" TEXT NOT NULL, "label" TEXT, "value" REAL NOT NULL, "low" REAL, "high" REAL,
            "provenance" TEXT NOT NULL, "noisy" INTEGER NOT NULL,
            "limit" TEXT, "verdict" TEXT, "edgekd" TEXT NOT NULL
        )
        """,
        'CREATE INDEX figures_by_time ON figures ("time")',
    ),
)

# The fields of an Entry that are columns of the same name.
_PLAIN = tuple(name for name in Entry.model_fields if name not in ("time", "interval"))
_COLUMNS = ("identity", "point", "time", "low", "high", *_PLAIN)
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
_INSERT = f"INSERT OR IGNORE INTO figures ({_NAMES}) VALUES ({', '.join('?' * len(_COLUMNS))})"


def append(path: Path, entries: Iterable[Entry]) -> int:
    """Add the entries that are not there yet, all or none; return how many those were.

    Makes the file where there is none, and a folder `.edgekd` for it; any other is the user's to make.
    Errors of `entries` themselves pass through,
    and nothing is added. Raises UsageError when the file cannot be written, or is something else.
    """
    _check_place(path)
    with _errors(path):
        _make_folder(path)
        with contextlib.closing(_connect(path, "rwc")) as database, _transaction(database):
            _upgrade(database, path)
            before = database.total_changes
            database.executemany(_INSERT, map(_row, entries))
            return database.total_changes - before


def read(path: Path, *, since: datetime | None = None, label: str | None = "*") -> list[Entry]:
    """Every measurement, oldest first, measured at `since` or later, with its latest verdict.

    `label` leaves out those of other classes; "*" is every one, None only what is of no class.

    Raises UsageError when the file is missing, damaged, from a newer edgekd, or something else.
    """
    _check_place(path)
    if not path.exists():
        raise UsageError(
            "there is no history yet",
            where=str(path),
            fix="every `edgekd gate` and `edgekd compress` adds to it; --file names another one",
        )
    with _errors(path), contextlib.closing(_connect(path, "rw")) as database:
        if _version(database, path) < len(MIGRATIONS):
            with _transaction(database):
                _upgrade(database, path)
        text = since.astimezone(UTC).isoformat() if since else ""
        query = (
            f'SELECT {_NAMES} FROM figures WHERE "time" >= ?1'
            """ AND (?2 = '*' OR "label" IS NULL OR "label" = ?2) ORDER BY "time", rowid"""
        )
        found: dict[str, Entry] = {}
        for number, row in enumerate(database.execute(query, [text, label]), start=1):
            point, entry = _entry(row, path, number)
            first = found.setdefault(point, entry)
            found[point] = first.model_copy(update={"limit": entry.limit, "verdict": entry.verdict})
    return list(found.values())


def _row(entry: Entry) -> tuple[object, ...]:
    low, high = entry.interval or (None, None)
    plain = (getattr(entry, name) for name in _PLAIN)
    return (entry.identity, entry.point, entry.time.isoformat(), low, high, *plain)


def _entry(row: tuple[object, ...], path: Path, number: int) -> tuple[str, Entry]:
    """A row back, checked: the file may be from anywhere."""
    values = dict(zip(_COLUMNS, row, strict=True))
    interval = None if values["low"] is None else (values["low"], values["high"])
    plain = {name: values[name] for name in _PLAIN}
    try:
        entry = Entry.model_validate({**plain, "time": values["time"], "interval": interval})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"row {number} holds what edgekd never wrote: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}",
            where=str(path),
        ) from None
    return str(values["point"]), entry


def _check_place(path: Path) -> None:
    with _errors(path):
        # SQLite would take a name up to a zero character.
        if "\0" in str(path) or (path.exists() and not path.is_file()):
            raise UsageError("is not a file", where=str(path))


def _make_folder(path: Path) -> None:
    folder = path.parent
    if folder.exists():
        return
    if folder.name != Path(DEFAULT).parent.name or not folder.parent.exists():
        raise UsageError(
            f"there is no folder {folder}", where=str(path), fix="make it, if it is meant"
        )
    folder.mkdir(exist_ok=True)
    # Ours alone; a measurement makes no working tree dirty.
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # The default rollback journal works on network file systems too, where a WAL does not.
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    database = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
    database.execute("PRAGMA trusted_schema = OFF")
    return database


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything or nothing; other writers wait from the start, so that nobody has to give up."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _version(database: sqlite3.Connection, path: Path) -> int:
    """How many migrations the file has had. Raises UsageError when it is not for this edgekd."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and (tables or version or application):
        raise UsageError("is another program's database, not a history", where=str(path))
    if not 0 <= version <= len(MIGRATIONS):
        raise UsageError(
            f"was written by a newer edgekd (format {version}; this one knows {len(MIGRATIONS)})",
            where=str(path),
            fix="upgrade edgekd, or name another file",
        )
    return int(version)


def _upgrade(database: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the current format, within the transaction that is open."""
    version = _version(database, path)
    if version == len(MIGRATIONS):
        return
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            database.execute(statement)
    database.execute(f"PRAGMA application_id = {_APPLICATION}")
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What SQLite and the disk complain of, as errors a user can act on."""
    try:
        yield
    except sqlite3.Error as error:
        what, fix = _explained(error)
        raise UsageError(what, where=str(path), fix=fix) from None
    except OSError as error:
        raise UsageError(
            f"cannot be opened or written: {error.strerror}", where=str(path), fix=_ELSEWHERE
        ) from None


def _explained(error: sqlite3.Error) -> tuple[str, str | None]:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "is locked by another program", "wait for it to finish"
    if name.startswith("SQLITE_FULL"):
        return "the disk is full", "free some space"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return "cannot be opened or written", _ELSEWHERE
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return (
            "is damaged, or is no history",
            "move it away: a fresh one is begun (`edgekd history import` brings back an export)",
        )
    return f"cannot be used: {error}", None
