"""A real sshd as the device: in a network namespace of its own where that is possible, else on loopback."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def wait_until(condition, seconds=30):
    """For what happens by itself; fails the test when it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


class Device:
    """`folder` holds keys and `config` (for EDGEKD_SSH_CONFIG), `home` is the device's home folder."""

    def __init__(self, folder):
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.lock, self.config = folder / "lock", folder / "config"
        self.namespace = self.process = None
        self.address, self.port = "127.0.0.1", _free_port()
        for name in ("host_key", "key", "other_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "key.pub", folder / "authorized_keys")

    def start(self, *, alone):
        """With `alone` it can be cut off, and reaches nothing but this machine."""
        if alone and _namespaces_work():
            self._namespace()
        environment = {"HOME": str(self.home), "EDGEKD_LOCK": str(self.lock)}
        if not alone:
            environment |= _for_pip()
        setting = " ".join(f'"{name}={value}"' for name, value in environment.items())
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.address}:{self.port}\n"
            f"HostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nLogLevel VERBOSE\nMaxStartups 100\n"
            f"SetEnv {setting}\n"
        )
        self.trust("host_key")
        self.config.write_text(
            f"Host device far\n  HostName {self.address}\n  Port {self.port}\n"
            f"  User {getpass.getuser()}\n  IdentityFile {self.folder}/key\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n"
            f"Host far\n  ProxyJump device\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        self.process = subprocess.Popen(
            [*inside, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stderr=(self.folder / "log").open("w"),
        )
        log = self.folder / "log"
        wait_until(lambda: "listening" in log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, log.read_text()

    def trust(self, name):
        """Make that key the one that is known of the device."""
        kind, key = (self.folder / f"{name}.pub").read_text().split()[:2]
        host = f"[{self.address}]:{self.port}"
        (self.folder / "known_hosts").write_text(f"{host} {kind} {key}\n")

    def _namespace(self):
        """198.18.0.0/15 is for tests (RFC 2544); the process number keeps runs apart."""
        number = os.getpid() % 16384
        self.namespace, self.near = f"edgekd-{os.getpid()}", f"edgekd{number}n"
        net = f"198.18.{number >> 6}.{(number & 63) * 4}"
        start, last = net.rpartition(".")[::2]
        near, self.address = f"{start}.{int(last) + 1}", f"{start}.{int(last) + 2}"
        far = f"edgekd{number}f"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.near, "type", "veth", "peer", "name", far,
            "netns", self.namespace)  # fmt: skip
        run("ip", "address", "add", f"{near}/30", "dev", self.near)
        inside = ("ip", "-n", self.namespace)
        run(*inside, "address", "add", f"{self.address}/30", "dev", far)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", far, "up")
        self.mend()

    def cut(self):
        """Nothing arrives any more, in either direction; nobody is told."""
        if self.namespace is None:
            pytest.skip("cutting the connection needs root and iproute2")
        run("ip", "link", "set", self.near, "down")

    def mend(self):
        run("ip", "link", "set", self.near, "up")

    def mount(self, path, options):
        """A small file system at `path`, that only the device sees."""
        if self.namespace is None:
            pytest.skip("a full disk needs root and iproute2")
        path.mkdir(parents=True)
        inside = ["nsenter", "-t", str(self.process.pid), "-m"]
        run(*inside, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
        return lambda *command: run(*inside, *command)

    def processes(self, word="edgekd_device"):
        """Numbers of the processes of the device part, by a word in their command lines."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                home = (entry / "environ").read_bytes().decode(errors="replace")
                if f"HOME={self.home}\0" in home and word in command:
                    found.append(int(entry.name))
        return found

    def connections(self):
        """Numbers of sshd's processes that serve somebody."""
        # Without any pgrep ends with 1.
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        for pid in self.processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        if self.namespace:
            run("ip", "netns", "delete", self.namespace)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _namespaces_work():
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"edgekd-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    if tried.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return tried.returncode == 0


def _for_pip():
    """How this machine reaches its package index, for a device that is this machine."""
    names = ("PIP_", "SSL_CERT_", "REQUESTS_", "http_proxy", "https_proxy", "HTTPS_PROXY")
    found = {name: value for name, value in os.environ.items() if name.startswith(names)}
    config = Path("~/.config/pip/pip.conf").expanduser()
    return ({"PIP_CONFIG_FILE": str(config)} if config.exists() else {}) | found


@contextlib.contextmanager
def _running(folder, *, alone):
    for program in (SSHD, "ssh", "ssh-keygen"):
        if not shutil.which(program):
            pytest.skip(f"there is no {program} (tests/system-packages.txt)")
    device = Device(folder)
    try:
        device.start(alone=alone)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGEKD_SSH_CONFIG", str(device.config))
            yield device
    finally:
        device.stop()


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    with _running(tmp_path_factory.mktemp("device"), alone=True) as device:
        yield device


@pytest.fixture
def device_with_network(tmp_path_factory):
    with _running(tmp_path_factory.mktemp("device"), alone=False) as device:
        yield device
