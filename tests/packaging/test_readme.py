"""The README's first command and the Dockerfile's steps, run for real from nothing, as CI does."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.packaging.recipe import copy_context, dockerfile, readme_command, steps

DEMO = ".venv/bin/edgekd compress --example digits"


@pytest.fixture
def container():
    """An empty folder that every user may look into, where the image's / would be."""
    with tempfile.TemporaryDirectory(prefix="edgekd-image-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def clean_environment():
    ours = str(Path(sys.executable).parent)
    path = [part for part in os.environ["PATH"].split(":") if part != ours]
    dropped = ("COVERAGE", "COV_CORE", "PYTEST", "PYTHON", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "PATH": ":".join(path)}


def run(command, cwd, env):
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def as_the_containers_user(user, python):
    """A prefix that changes to `user` (uid:gid), where we may and that user can run `python`."""
    uid, gid = user.split(":")
    prefix = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return []
    # It must be able to start another one, as the profile does: not so below /root.
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    works = subprocess.run([*prefix, python, "-c", again], capture_output=True).returncode == 0
    return prefix if works else []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_images_steps_build_a_working_edgekd_from_what_they_copy(container):
    builder, runtime = dockerfile()
    env = clean_environment()
    source = container / builder.all("WORKDIR")[0].strip("/")
    source.mkdir()
    copy_context(source)
    for command in builder.all("RUN"):
        run(["bash", "-c", " && ".join(steps(command))], source, env)
    shutil.rmtree(source / "edgekd")  # the second stage gets the environment only
    workdir = runtime.all("WORKDIR")[0]
    for command in runtime.all("RUN"):
        run(["bash", "-c", command.replace(workdir, f"{container}{workdir}")], container, env)

    variables = {k: v for k, v in runtime.environment().items() if k != "PATH"}
    user = as_the_containers_user(runtime.all("USER")[0], source / ".venv" / "bin" / "python")
    demo = steps(readme_command(DEMO))[-1].split()
    entry = source / demo[0]
    work = Path(f"{container}{workdir}")
    # As a reader runs it, but for latencies as narrow as asked: beside other tests they never are.
    quick = ["--set", "profile.max_seconds=1"]
    run([*user, entry, *demo[1:], *quick], work, {**env, **variables})

    report = work / "runs" / "digits" / "report.html"
    assert report.stat().st_size > 10_000
    assert report.stat().st_uid == (
        int(runtime.all("USER")[0].split(":")[0]) if user else os.geteuid()
    )
