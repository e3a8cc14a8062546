"""The device's side of the ADB protocol over TCP, with a real shell and real files in a folder.

Enough of adbd for `adb connect`: CNXN, AUTH (refused), OPEN, OKAY, WRTE, CLSE; the services `shell:`,
`shell,v2,raw:`, `exec:` and `sync:` (STAT, LSTAT, SEND, RECV; version 2 of STAT as a feature).
As in adbd, the end of a stream is the end of its process's input and output, and nothing more.
Source: protocol.txt, SERVICES.TXT, SYNC.TXT, shell_protocol.h and file_sync_protocol.h of AOSP.
"""

import contextlib
import os
import queue
import socket
import stat
import struct
import subprocess
import threading
from pathlib import Path

SYNC, CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little")
    for name in (b"SYNC", b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
VERSION, MAX_DATA = 0x01000001, 256 * 1024
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class AdbDevice:
    """A context manager; `port` for `adb connect 127.0.0.1:PORT`, `services` what was opened."""

    def __init__(
        self, root, *, features=("shell_v2", "cmd", "stat_v2"), authorized=True,
        shell="/bin/sh", path="/usr/bin:/bin",
    ):  # fmt: skip
        self.root, self.features, self.authorized = root, features, authorized
        self.shell, self.path = shell, path
        self.services = []
        self.pushed = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        self._connections = []

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.disconnect()

    def disconnect(self):
        """As if the cable were pulled."""
        for connection in self._connections:
            connection.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection = _Connection(self, self._listener.accept()[0])
                self._connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()


class _Connection:
    def __init__(self, device, peer):
        self.device, self.peer = device, peer
        self.streams = {}
        self._sending = threading.Lock()

    def close(self):
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_RDWR)
        self.peer.close()
        for stream in list(self.streams.values()):
            stream.end()

    def send(self, command, arg0, arg1, data=b""):
        header = struct.pack(
            "<6I", command, arg0, arg1, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF
        )
        with self._sending:
            self.peer.sendall(header + data)

    def serve(self):
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, arg0, arg1, length, _, _ = struct.unpack("<6I", self._exactly(24))
                self._handle(command, arg0, arg1, self._exactly(length))
        self.close()

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            chunk = self.peer.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def _handle(self, command, arg0, arg1, data):
        if command == CNXN and self.device.authorized:
            banner = f"device::ro.product.model=Test;features={','.join(self.device.features)}"
            self.send(CNXN, VERSION, MAX_DATA, banner.encode())
        elif command in (CNXN, AUTH) and not self.device.authorized:
            if command == AUTH and arg0 == 3:  # the public key, for the user to accept: nobody does
                return
            self.send(AUTH, 1, 0, os.urandom(20))
        elif command == OPEN:
            stream = self.streams[arg0] = _Stream(self, arg0)
            self.send(OKAY, arg0, arg0)
            service = data.rstrip(b"\0").decode()
            self.device.services.append(service)
            threading.Thread(target=stream.serve, args=(service,), daemon=True).start()
        elif command == WRTE and arg1 in self.streams:
            self.streams[arg1].received.put(data)
            self.send(OKAY, arg1, arg0)
        elif command == OKAY and arg1 in self.streams:
            self.streams[arg1].acknowledged.release()
        elif command == CLSE and arg1 in self.streams:
            self.streams.pop(arg1).end()


class _Stream:
    """Both sides name it by the host's number."""

    def __init__(self, connection, number):
        self.connection, self.number = connection, number
        self.received = queue.Queue()
        self.acknowledged = threading.Semaphore(1)
        self.ended = False
        self._rest = b""

    def end(self):
        self.ended = True
        self.received.put(b"")
        self.acknowledged.release()

    def write(self, data):
        for start in range(0, len(data), 32768):
            self.acknowledged.acquire()
            if self.ended:
                self.acknowledged.release()  # for the other writer
                raise BrokenPipeError
            self.connection.send(WRTE, self.number, self.number, data[start : start + 32768])

    def read(self, count):
        while len(self._rest) < count:
            data = self.received.get()
            if not data:
                raise EOFError
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def serve(self, service):
        name, _, argument = service.partition(":")
        with contextlib.suppress(OSError, EOFError):
            if name == "sync":
                _Sync(self, self.connection.device).serve()
            elif name.split(",")[0] == "shell":
                self._shell(argument, v2="v2" in name.split(","))
            elif name == "exec":
                self._shell(argument, v2=False)
        if not self.ended:
            with contextlib.suppress(OSError):
                self.acknowledged.acquire(timeout=5)
                self.connection.send(CLSE, self.number, self.number)
        self.connection.streams.pop(self.number, None)

    def _shell(self, command, *, v2):
        device, root = self.connection.device, self.connection.device.root
        process = subprocess.Popen(
            [device.shell, "-c", command], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if v2 else subprocess.STDOUT, start_new_session=True,
            env={"PATH": f"{root}/bin:{device.path}", "HOME": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        threading.Thread(target=self._feed, args=(process, v2), daemon=True).start()
        readers = [
            threading.Thread(target=self._drain, args=(pipe, number, v2), daemon=True)
            for pipe, number in ((process.stdout, STDOUT), (process.stderr, STDERR))
            if pipe is not None
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = process.wait()
        if v2:
            self.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))

    def _feed(self, process, v2):
        with contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                if not v2:
                    data = self.read(1)
                else:
                    kind, length = struct.unpack("<BI", self.read(5))
                    data = self.read(length)
                    if kind == CLOSE_STDIN:
                        break
                    if kind != STDIN:
                        continue
                process.stdin.write(data)
                process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _drain(self, pipe, number, v2):
        with contextlib.suppress(OSError), pipe:
            while data := os.read(pipe.fileno(), 4096):
                self.write(struct.pack("<BI", number, len(data)) + data if v2 else data)


class _Sync:
    def __init__(self, stream, device):
        self.stream, self.device = stream, device

    def serve(self):
        while True:
            request, length = struct.unpack("<4sI", self.stream.read(8))
            argument = self.stream.read(length).decode()
            if request == b"QUIT":
                return
            getattr(self, request.decode().lower())(argument)

    def stat(self, path):
        status = self._status(path)
        values = (status.st_mode, status.st_size, int(status.st_mtime)) if status else (0, 0, 0)
        self.stream.write(struct.pack("<4s3I", b"STAT", *values))

    def sta2(self, path, name=b"STA2"):
        status = self._status(path)
        if status is None:
            self.stream.write(struct.pack("<4sI2Q4IQ3q", name, 2, *[0] * 10))
            return
        self.stream.write(
            struct.pack(
                "<4sI2Q4IQ3q", name, 0, status.st_dev, status.st_ino, status.st_mode,
                status.st_nlink, status.st_uid, status.st_gid, status.st_size,
                int(status.st_atime), int(status.st_mtime), int(status.st_ctime),
            )
        )  # fmt: skip

    def lst2(self, path):
        self.sta2(path, b"LST2")

    def send(self, argument):
        path, _, mode = argument.rpartition(",")
        self.device.pushed.append(path)
        problem = None
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            problem, file = error, open(os.devnull, "wb")  # noqa: SIM115
        with file:
            while True:
                kind, length = struct.unpack("<4sI", self.stream.read(8))
                if kind == b"DONE":
                    break
                data = self.stream.read(length)
                try:
                    if problem is None and file.write(data) != len(data):
                        raise OSError(28, "No space left on device")
                except OSError as error:
                    problem = error
        if problem is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
            text = f"couldn't write: {problem.strerror}".encode()
            self.stream.write(struct.pack("<4sI", b"FAIL", len(text)) + text)
            return
        os.chmod(path, stat.S_IMODE(int(mode)))
        os.utime(path, (length, length))
        self.stream.write(struct.pack("<4sI", b"OKAY", 0))

    def recv(self, path):
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            text = error.strerror.encode()
            self.stream.write(struct.pack("<4sI", b"FAIL", len(text)) + text)
            return
        for start in range(0, len(content), 65536):
            chunk = content[start : start + 65536]
            self.stream.write(struct.pack("<4sI", b"DATA", len(chunk)) + chunk)
        self.stream.write(struct.pack("<4sI", b"DONE", 0))

    def _status(self, path):
        try:
            return os.stat(path)
        except OSError:
            return None
