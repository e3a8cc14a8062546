import errno
import os
import subprocess
import sys
import threading

import pytest

from edgekd.artifacts import (
    atomic_path,
    disk_errors,
    read_json,
    sha256_json,
    write_json,
    write_text,
)
from edgekd.errors import StageError, UsageError


def test_a_file_is_whole_or_as_it_was_before(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real/a.txt", tmp_path / "a.txt"
    target.write_text("old")
    link.symlink_to("real/a.txt")
    held = target.open()
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert held.read() == "old"  # replaced, not overwritten
    assert os.listdir(tmp_path / "real") == ["a.txt"]
    (tmp_path / "b.txt").symlink_to("real/b.txt")
    write_text(tmp_path / "b.txt", "made")
    assert (tmp_path / "real/b.txt").read_text() == "made"


def test_a_pipe_stays_a_pipe_and_its_reader_gets_the_contents(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "contents")
    reader.join(10)
    assert got == ["contents"]
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc")
def test_the_name_of_an_open_file_is_written_into_after_what_is_there(tmp_path):
    code = (
        "from pathlib import Path; from edgekd.artifacts import write_text\n"
        "print('before', flush=True); write_text(Path('link'), 'contents')"
    )
    # A link of our own in place of /dev/stdout, which is one to the same name.
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ncontents"
    assert (tmp_path / "link").is_symlink()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="Is a directory") as caught:
        write_text(tmp_path, "x")
    assert ".tmp" not in str(caught.value)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, StageError, "disk is full"),
        (errno.EACCES, UsageError, "cannot be written"),
        (errno.EROFS, UsageError, "cannot be written"),
    ],
)
def test_write_errors_say_what_to_do(tmp_path, number, kind, text):
    with pytest.raises(kind, match=text), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_system_errors_pass_through(tmp_path):
    with pytest.raises(OSError, match="Input/output"), disk_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_real_full_disk_is_one_clear_error(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with (
        pytest.raises(StageError, match="disk is full"),
        disk_errors(tmp_path),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_reading_what_is_not_json_is_one_clear_error(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.json"):
        read_json(path)


def test_the_hash_of_json_does_not_depend_on_key_order():
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
