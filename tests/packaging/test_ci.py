"""CI, the README and CONTRIBUTING name the same commands."""

import os
import subprocess

import pytest
import yaml

from tests.packaging.recipe import ROOT, readme_command, steps

SCRIPT = ROOT / "tests" / "run.sh"


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_readmes_test_command_is_the_one_that_every_ci_runs():
    command = readme_command("tests/run.sh")
    assert command == "bash tests/run.sh"
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == f"exec {command}"
    assert command in (ROOT / "CONTRIBUTING.md").read_text()
    assert commands(load(".github/workflows/ci.yml")["jobs"]["tests"]) == [command]


def test_tests_are_installed_under_the_same_constraints_as_the_readmes_demo():
    demo = steps(readme_command(".venv/bin/edgekd compress --example digits"))
    (install,) = (step for step in demo if "pip" in step)
    tested = install.replace("install", "install -q").removesuffix(".") + "-e '.[test]'"
    assert tested in SCRIPT.read_text().splitlines()


def test_the_workflow_may_only_read_and_old_runs_are_cancelled():
    workflow = load(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]


def test_the_image_is_linted_built_and_run():
    assert commands(load(".github/workflows/ci.yml")["jobs"]["docker"])[1:] == [
        "hadolint Dockerfile",
        "docker build -t edgekd .",
        "docker run --rm edgekd compress --example digits",
    ]


def test_local_hooks_use_the_tools_of_the_test_environment():
    local = [r for r in load(".pre-commit-config.yaml")["repos"] if r["repo"] == "local"]
    entries = {h["id"]: h["entry"].split()[0] for r in local for h in r["hooks"]}
    assert entries == {
        "ruff": ".venv/bin/ruff",
        "ruff-format": ".venv/bin/ruff",
        "mypy": ".venv/bin/mypy",
        "hadolint": ".venv/bin/hadolint",
    }


@pytest.mark.parametrize("name", ["tests/run.sh", ".ci/run"])
def test_the_scripts_are_valid_bash_and_stop_at_the_first_error(name):
    path = ROOT / name
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0
    assert "\nset -euo pipefail\n" in path.read_text()


def test_without_a_recent_python_the_script_says_what_it_looked_for(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    old = tools / "python3"
    old.write_text("#!/usr/bin/bash\nexit 1\n")  # as an older Python answers the version check
    old.chmod(0o755)
    script = tmp_path / "tests" / "run.sh"
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text())
    result = subprocess.run(
        ["bash", script], env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "no Python 3.11 or newer" in result.stderr


def test_ci_run_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_action_passes_inputs_through_the_environment_only():
    action = load("action.yml")
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]
    used = {value for step in action["runs"]["steps"] for value in step["env"].values()}
    assert {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]} <= used


@pytest.mark.parametrize("baseline", ["", "runs/a b; touch hacked"])
def test_the_actions_gate_command_keeps_its_arguments_whole(baseline, tmp_path):
    command = load("action.yml")["runs"]["steps"][1]["run"]
    tool = tmp_path / "edgekd"
    tool.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    tool.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:/usr/bin",
        "CONFIG": "my run",
        "BASELINE": baseline,
        "JUNIT": "j.xml",
    }
    result = subprocess.run(
        ["bash", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    expected = [
        "gate",
        "my run",
        *(["--baseline", baseline] if baseline else []),
        "--junit",
        "j.xml",
    ]
    assert result.stdout.splitlines() == expected
    assert not (tmp_path / "hacked").exists()
