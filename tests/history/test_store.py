"""The SQLite file: nothing twice, nothing half, many writers, and files that are something else."""

import multiprocessing
import sqlite3

import pytest

from edgekd.errors import UsageError
from edgekd.history import store
from tests.history.entries import HOSTILE, entry


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.sqlite"


def test_what_is_appended_comes_back_oldest_first(path):
    written = [
        entry(2, metric="class_recall", label=HOSTILE, value=0.5, interval=None, target=None),
        entry(0, commit=None, dirty=None, branch=None, provenance="emulated", noisy=True),
        entry(1, limit="≤ 3 ms", verdict="inconclusive"),
    ]
    assert store.append(path, written) == 3
    assert store.read(path) == [written[1], written[2], written[0]]
    assert store.read(path, since=entry(1).time) == [written[2], written[0]]
    assert store.read(path, label=None) == [written[1], written[2]]
    assert len(store.read(path, label=HOSTILE)) == 3
    assert len(store.read(path, label="cat")) == 2


def test_the_same_measurement_is_kept_once_whatever_the_commit_is_by_then(path):
    store.append(path, [entry(), entry(1)])
    assert store.append(path, [entry(), entry(1, commit="f" * 40, dirty=True)]) == 0
    assert [e.commit for e in store.read(path)] == ["0" * 40] * 2
    assert store.append(path, [entry(value=0.003, interval=None)]) == 1


def test_another_budget_on_the_same_measurement_is_no_other_point(path):
    store.append(path, [entry(limit="≤ 3 ms", verdict="pass")])
    store.append(path, [entry(limit="≤ 1 ms", verdict="fail")])
    (found,) = store.read(path)
    assert (found.limit, found.verdict) == ("≤ 1 ms", "fail")


def test_all_or_nothing(path):
    def broken():
        yield entry()
        raise UsageError("broken")

    store.append(path, [entry(5)])
    with pytest.raises(UsageError, match="broken"):
        store.append(path, broken())
    assert store.read(path) == [entry(5)]


def _write(path, start):
    for day in range(start, start + 10):
        store.append(path, [entry(day), entry(day, metric="size", value=9)])


def test_several_writers_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, 10 * i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(store.read(path)) == 80


def test_a_locked_file_is_one_clear_error(path, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE", 0.05)
    store.append(path, [entry()])
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        for action in (lambda: store.append(path, [entry(1)]), lambda: store.read(path)):
            with pytest.raises(UsageError, match="locked by another program"):
                action()
    finally:
        holder.close()
    assert store.read(path) == [entry()]


def _newer(path):
    store.append(path, [entry()])
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


def _others(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE figures (x)")


def _damaged(path):
    store.append(path, [entry(day) for day in range(200)])
    data = bytearray(path.read_bytes())
    data[200:-4096] = b"\xff" * (len(data) - 4096 - 200)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_newer, "newer edgekd"),
        (_others, "another program's database"),
        (_damaged, "is damaged"),
        (lambda path: path.write_text("not a database, but some text\n" * 99), "is damaged"),
        (lambda path: path.mkdir(), "is not a file"),
    ],
)
def test_a_file_that_is_no_history_is_refused_and_left_as_it_is(path, make, message):
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for action in (lambda: store.append(path, [entry(1)]), lambda: store.read(path)):
        with pytest.raises(UsageError, match=message):
            action()
    assert path.is_dir() or path.read_bytes() == before


def test_a_missing_history_says_where_figures_come_from(path):
    with pytest.raises(UsageError, match="no history yet") as caught:
        store.read(path)
    assert "edgekd gate" in str(caught.value.fix)
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    ["value = 'much'", "metric = char(27) || '[2J'", "time = 'today'", "config = ''", "low = 9.0"],
)
def test_a_row_that_edgekd_never_wrote_is_refused(path, change):
    store.append(path, [entry()])
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE figures SET {change}")
    with pytest.raises(UsageError, match="row 1 holds what edgekd never wrote"):
        store.read(path)


def test_the_default_folder_is_ignored_by_git_and_another_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    store.append(tmp_path / "a" / store.DEFAULT, [entry()])
    assert (tmp_path / "a/.edgekd/.gitignore").read_text() == "*\n"
    store.append(tmp_path / "b/history.sqlite", [entry()])
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["history.sqlite"]


@pytest.mark.parametrize("place", ["typo/history.sqlite", "typo/.edgekd/history.sqlite"])
def test_no_other_folder_is_made(tmp_path, place):
    with pytest.raises(UsageError, match="there is no folder"):
        store.append(tmp_path / place, [entry()])
    assert list(tmp_path.iterdir()) == []
