"""What every example's run.py does with its folder; that they compress is tested where their data is."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name, *arguments, cwd):
    command = [sys.executable, EXAMPLES / name / "run.py", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXAMPLES.glob("*/run.py")))
def test_help_says_what_it_does_and_makes_nothing(name, tmp_path):
    done = example(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "a folder, then" in " ".join(done.stdout.split())
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_was_edited_is_kept_and_used(tmp_path):
    (tmp_path / "motions").mkdir()
    (tmp_path / "motions/Motions_TEST.ts").touch()
    config = tmp_path / "compress.yaml"
    config.write_text("distil: {}\n")
    done = example("sensors", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "it is used as it is" in done.stderr
    assert "did you mean 'distill'" in done.stderr
    assert config.read_text() == "distil: {}\n"


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    done = example("sensors", tmp_path / "file", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'file'}: File exists\n"
