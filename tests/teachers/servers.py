"""Real servers from PyPI, each in an environment of its own: they pin what edgekd must not be held to."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("EDGEKD_SERVERS", Path(__file__).parents[2] / ".servers"))


def environment(name, *packages, beside=False):
    """The `bin` folder of an environment with the packages, made once; `beside`: torch comes from ours.

    Skips where it cannot be made, as without a network.
    """
    folder = FOLDER / name
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        if beside:
            (site,) = folder.glob("lib/*/site-packages")
            ours = next(path for path in sys.path if path.endswith("site-packages"))
            (site / "beside.pth").write_text(ours)
        made = subprocess.run(
            [folder / "bin/pip", "install", "-q", *packages], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"{packages[0]} cannot be installed: {made.stderr.strip()[-300:]}")
        (folder / "made").touch()
    return folder / "bin"


def free_ports(count):
    """Ports of the loopback that nobody listens on.

    Not those that the kernel gives to connections: one of another process may have it before the server.
    """
    found = []
    while len(found) < count:
        # Of the system: `random` draws the same in every worker.
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            found += [port] * (port not in found)
    return found


@contextlib.contextmanager
def running(command, ready, log, **options):
    """The process while it runs, from when `ready` (a URL) answers with 200 on."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options)
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(ready, timeout=2).status == 200:
                    break
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
