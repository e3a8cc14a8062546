"""Target descriptors: where they are found, and what is refused with file, line and key."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.errors import UsageError
from edgekd.profile.targets import TARGETS, find

ROOT = Path(__file__).parents[2]
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
    shipped = {path.stem for path in (ROOT / "targets").glob("*.yaml")}
    assert [path.stem for path in TARGETS.files(tmp_path)] == sorted({"mine", *shipped})


def test_a_users_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, MINE)
    monkeypatch.chdir(tmp_path)
    assert find("mine", tmp_path / "elsewhere").threads == 2


def test_an_unknown_target_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"profile\.targets: unknown target 'toaster'.*local"):
        find("toaster", tmp_path)
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
        (MINE + "transport: ssh\n", 5, "transport: ssh needs the key `ssh`"),
        (MINE + "ssh: {host: pi}\n", 5, "ssh: is for transport: ssh, not local"),
        (MINE + "ssh:\n  hots: pi\n", 6, "ssh.hots: unknown key; did you mean 'host'"),
        (MINE + "memory: lots\n", 5, "memory: 'lots' should be a number with a unit"),
    ],
)
def test_a_mistake_is_located(tmp_path, text, line, message):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        TARGETS.read(path)
    assert f"{path}:{line}" in str(caught.value) or "not valid YAML" in str(caught.value)


BAD = {
    "host": ["-oProxyCommand=id", "a b", "a;id", "$(id)", "`id`", "a\nb", "a/b", "root@a", "", "é"],
    "user": ["-l", "a;id", "$(id)", "a b", "a\n", "'", ""],
    "port": [0, 65_536, "22", "22;id", -1],
    "identity": ["-F", "a\nb", "a\0b", "\x1b[2J"],
    "folder": ["relative", "-rf", "~root/x", "/a\nb", "/a/../../etc", "/a\x1b[2J", "~/.."],
    "python": ["python3", "-c", "/a\0b", "python3 -c x", "/usr/bin/python3\n"],
}


@pytest.mark.parametrize("key", BAD)
def test_a_hostile_way_to_a_device_is_refused(tmp_path, key):
    for value in BAD[key]:
        # JSON is YAML, escapes included.
        ssh = json.dumps({"host": "pi", key: value})
        path = write(tmp_path, f"{MINE}transport: ssh\nssh: {ssh}\n")
        with pytest.raises(UsageError) as caught:
            TARGETS.read(path)
        assert f"{path}:6: ssh.{key}: " in str(caught.value) or "not valid YAML" in str(
            caught.value
        )


@pytest.mark.parametrize("path", sorted((ROOT / "targets").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_descriptor_is_valid(path):
    assert TARGETS.read(path).description


def edgekd(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "edgekd", "targets", *arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ},
    )  # fmt: skip


def test_the_command_lists_and_shows(tmp_path):
    write(tmp_path, MINE)
    listed = edgekd("list", cwd=tmp_path)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert {"local", "mine", "offline", "raspberry-pi-5"} <= set(names)
    assert [t["name"] for t in json.loads(edgekd("list", "--json", cwd=tmp_path).stdout)] == names
    shown = json.loads(edgekd("show", "mine", "--json", cwd=tmp_path).stdout)
    assert shown["class"] == "edge"
    assert "threads: 2" in edgekd("show", "mine", cwd=tmp_path).stdout
    missing = edgekd("show", "mien", cwd=tmp_path)
    assert missing.returncode == 2
    assert "did you mean 'mine'" in missing.stderr
