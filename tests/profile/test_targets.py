"""Target descriptors: where they are found, and what is refused with file, line and key."""

import json
import os
import subprocess
import sys

import pytest

from edgekd.errors import UsageError
from edgekd.profile.targets import TARGETS, find

MINE = """\
name: mine
class: edge
threads: 2
runtimes: [onnxruntime]
"""


def write(folder, text, name="mine"):
    (folder / "targets").mkdir(exist_ok=True)
    path = folder / "targets" / f"{name}.yaml"
    path.write_text(text)
    return path


def test_this_machine_is_shipped(tmp_path):
    local = find("local", tmp_path)
    assert (local.transport, local.threads, local.precision) == ("local", 1, "f32")
    assert local.runtimes == ["onnxruntime", "openvino"]


def test_a_users_own_is_found_beside_the_configuration_and_hides_a_shipped_one(tmp_path):
    write(tmp_path, MINE)
    write(tmp_path, MINE.replace("mine", "local"), "local")
    assert find("mine", tmp_path).kind == "edge"
    assert find("local", tmp_path).threads == 2
    assert {"local", "mine"} <= {path.stem for path in TARGETS.files(tmp_path)}


def test_a_users_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, MINE)
    monkeypatch.chdir(tmp_path)
    assert find("mine", tmp_path / "elsewhere").threads == 2


def test_an_unknown_target_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"profile\.targets: unknown target 'raspberry'.*local"):
        find("raspberry", tmp_path)
    with pytest.raises(UsageError, match=r"unknown target '\.\./\.\./etc/passwd'"):
        find("../../etc/passwd", tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (MINE + "thread: 3\n", 5, "thread: unknown key; did you mean 'threads'"),
        (MINE.replace("threads: 2", "threads: two"), 3, "threads: .*integer"),
        (MINE.replace("threads: 2", "threads: 0"), 3, "threads: "),
        (MINE.replace("edge", "toaster"), 2, "class: "),
        (MINE.replace("onnxruntime", "onnxruntim"), 4, "did you mean 'onnxruntime'"),
        (
            MINE + "transport: locl\n",
            5,
            "transport: unknown transport 'locl'; did you mean 'local'",
        ),
        (MINE.replace("mine", "yours"), 1, "the file is called mine.yaml"),
        (MINE.replace("name: mine", "name: 'a;b'"), 1, "name: "),
        ("name: [", 1, "not valid YAML"),
    ],
)
def test_a_mistake_is_located(tmp_path, text, line, message):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        TARGETS.read(path)
    assert f"{path}:{line}" in str(caught.value) or "not valid YAML" in str(caught.value)


def edgekd(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "edgekd", "targets", *arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ},
    )  # fmt: skip


def test_the_command_lists_and_shows(tmp_path):
    write(tmp_path, MINE)
    listed = edgekd("list", cwd=tmp_path)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert {"local", "mine"} <= set(names)
    assert len(json.loads(edgekd("list", "--json", cwd=tmp_path).stdout)) == len(names)
    shown = json.loads(edgekd("show", "mine", "--json", cwd=tmp_path).stdout)
    assert shown["class"] == "edge"
    assert "threads: 2" in edgekd("show", "mine", cwd=tmp_path).stdout
    missing = edgekd("show", "mien", cwd=tmp_path)
    assert missing.returncode == 2
    assert "did you mean 'mine'" in missing.stderr
