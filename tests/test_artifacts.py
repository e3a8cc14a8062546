import errno
import os

import pytest

from edgekd.artifacts import atomic_path, disk_errors, read_json, sha256_json, write_json
from edgekd.errors import StageError, UsageError


def test_a_file_is_whole_or_as_it_was_before(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


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
