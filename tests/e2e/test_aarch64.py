"""A bundle on an aarch64 system, offline, under QEMU's user emulation: outputs as on x86.

The system is Debian's own arm64 packages, extracted and never executed while it is made; it is kept
in ~/.cache/edgekd-tests. Mounts, the network without interfaces, and the rule that gives aarch64
programs to QEMU live in namespaces that end with the process.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from edgekd.pipeline.run import Run
from tests.pipeline.test_line import TINY, merged

pytestmark = pytest.mark.slow

PACKAGES = "python3.11,libpython3.11-stdlib,libstdc++6,libgomp1,zlib1g,libffi8,libexpat1,libssl3"
SYSTEM = ["mmdebstrap", "--arch=arm64", "--variant=extract", "--skip=check/qemu",
          f"--include={PACKAGES}", "bookworm"]  # fmt: skip
WHEELS = [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "onnxruntime")]
PLATFORM = ["--only-binary=:all:", "--no-deps", "--implementation=cp", "--python-version=3.11",
            "--platform=manylinux_2_28_aarch64", "--platform=manylinux_2_27_aarch64"]  # fmt: skip
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekd-tests"

# Of this user namespace alone (Linux 6.7); where that is not to be had, the machine's own will do.
RULE = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:F"
)
# The host's /sys stays out: ONNX Runtime's aarch64 start-up trips over the caches of some x86 CPUs.
ENTER = """\
set -e
root=$1 folder=$2 rule=$3
shift 3
if mount -t binfmt_misc none /proc/sys/fs/binfmt_misc 2>/dev/null; then
  printf %s "$rule" > /proc/sys/fs/binfmt_misc/register
fi
mount --rbind /proc "$root/proc"
mount --bind "$folder" "$root/mnt"
exec chroot "$root" "$@"
"""


def need(command, what):
    """Run a command that only a machine's set-up can make fail; its last words are the reason."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        words = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"{what}: {words}")


def on_aarch64(root, folder, *command):
    """Run a command of the system `root` with `folder` at /mnt, without a network."""
    qemu = shutil.which("qemu-aarch64-static")
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork",
         "--kill-child", "--mount-proc", "sh", "-c", ENTER, "sh", str(root), str(folder),
         RULE.format(qemu=qemu), *command],
        capture_output=True, text=True, timeout=200,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "/site", "QEMU_CPU": "cortex-a72"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def system():
    """The root folder of an arm64 Debian with Python, numpy and ONNX Runtime in /site."""
    for program in ("mmdebstrap", "qemu-aarch64-static", "unshare"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (tests/system-packages.txt)")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make and enter an arm64 system")
    recipe = hashlib.sha256(json.dumps([SYSTEM, WHEELS, PLATFORM]).encode()).hexdigest()[:16]
    root = CACHE / f"aarch64-{recipe}"
    if not root.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        making = CACHE / f"making-{os.getpid()}"
        try:
            need([*SYSTEM, str(making)], "no arm64 system (mmdebstrap)")
            pip = [sys.executable, "-m", "pip", "download", "-q", *PLATFORM]
            need([*pip, "-d", str(making / "wheels"), *WHEELS], "no aarch64 wheels (pip)")
            for wheel in (making / "wheels").glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(making / "site")
            shutil.rmtree(making / "wheels")
            for name in ("proc", "mnt"):
                (making / name).mkdir(exist_ok=True)
            making.rename(root)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    probe = on_aarch64(
        root, CACHE, "/usr/bin/python3.11", "-c", "import platform as p; print(p.machine())"
    )
    if probe.stdout != "aarch64\n":
        pytest.skip(f"aarch64 programs cannot be run here: {probe.stderr.strip()[-200:]}")
    return root


def edgekd(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *arguments], capture_output=True, text=True, cwd=cwd
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a run that waits for the result of a bundle, and the unpacked bundle."""
    root = tmp_path_factory.mktemp("aarch64")
    config = merged(
        TINY,
        {
            "export": {"formats": ["onnx"]},
            "quantize": {},
            "profile": {"targets": ["offline"], "max_seconds": 1},
        },
    )
    config["student"] = {"model": "zoo:dscnn", "args": {"width": 8}}
    (root / "compress.yaml").write_text(yaml.safe_dump(config))
    assert edgekd("compress", "compress.yaml", "-q", cwd=root).returncode == 3
    made = edgekd("bundle", "runs/tiny", "-o", "bench.zip", "--samples", "100", cwd=root)
    assert made.returncode == 0, made.stderr
    zipfile.ZipFile(root / "bench.zip").extractall(root / "bench")
    return root


def test_a_bundle_gives_the_same_outputs_and_figures_that_are_called_emulated(system, project):
    run = on_aarch64(system, project / "bench", "/usr/bin/python3.11", "/mnt/bench.pyz")
    assert run.returncode == 0, run.stderr
    assert str(system) not in Path("/proc/self/mountinfo").read_text()

    result = json.loads((project / "bench/result.json").read_text())
    assert result["failed"] == {}
    assert result["environment"]["architecture"] == "aarch64"
    assert "qemu" in result["environment"]["emulated"]

    brought = edgekd("import", "bench/result.json", cwd=project)
    assert brought.returncode == 0, brought.stderr
    assert "its speed is no device's" in brought.stdout
    done = edgekd("compress", "compress.yaml", cwd=project)
    assert done.returncode == 0, done.stderr

    measured = {(m.role, m.variant): m for m in Run(project / "runs/tiny").profile.measurements}
    assert set(measured) == {("teacher", "f32"), ("student", "f32"), ("student", "int8")}
    for (_, variant), m in measured.items():
        assert m.provenance == "emulated"
        assert m.latency.p50 > 0
        parity = m.device_parity
        assert parity.samples == 100
        if variant == "f32":
            assert parity.max_error < 1e-5
            assert parity.agreement == 1
            assert parity.accuracy == parity.accuracy_here
        else:
            # Equal where x86 has VNNI; older kernels saturate where Arm's do not.
            assert parity.max_error < 0.1
            assert abs(parity.accuracy - parity.accuracy_here) <= 0.02
    assert "· emulated" in done.stdout
    assert "emulated" in (project / "runs/tiny/report.html").read_text()


def test_an_edited_model_is_refused_there_too(system, project, tmp_path):
    folder = tmp_path / "bench"
    shutil.copytree(project / "bench", folder)
    (folder / "result.json").unlink(missing_ok=True)
    next(folder.glob("files/*/student.onnx")).write_bytes(b"edited")
    run = on_aarch64(system, folder, "/usr/bin/python3.11", "/mnt/bench.pyz")
    assert run.returncode == 2
    assert "is not the file that was bundled" in run.stderr
    assert not (folder / "result.json").exists()
