"""ONNX Runtime Web from npm: one pinned version, fetched once, read from its archive.

Nothing is unpacked: the few files that a page needs are read by name from an archive whose SHA-512
is pinned here.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import tarfile
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from edgekd.artifacts import write_bytes
from edgekd.errors import StageError

VERSION = "1.30.0"
# As `npm view onnxruntime-web@VERSION dist.integrity` says.
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_SIZE, _SECONDS = 64 << 20, 60
_NAME = f"onnxruntime-web-{VERSION}.tgz"


@dataclass(frozen=True)
class Build:
    """One build of the package: its execution provider, its module, and what that loads."""

    provider: str
    module: str
    parts: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all its files."""
        return (self.module, *self.parts)


BUILDS = {
    "onnxruntime-web": Build(
        "wasm",
        "ort.wasm.min.mjs",
        ("ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    ),
    "onnxruntime-web-webgpu": Build(
        "webgpu",
        "ort.webgpu.min.mjs",
        ("ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
    ),
}


def read(names: Iterable[str]) -> dict[str, bytes]:
    """The content of these files of the package's `dist/`. Raises StageError."""
    wanted = {f"package/dist/{name}": name for name in names}
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=BytesIO(_archive()), mode="r|gz") as files:
        for member in files:
            if member.name in wanted and (file := files.extractfile(member)):
                found[wanted[member.name]] = file.read()
    return found


def cache() -> Path:
    """Where the archive is kept: below XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgekd"


def _archive() -> bytes:
    """The package, from the cache or else from the registry, with the pinned hash."""
    path = cache() / _NAME
    if path.is_file() and _is_it(data := path.read_bytes()):
        return data
    data = _download()
    if not _is_it(data):
        raise StageError(
            "what the registry sent is not the package that edgekd was tested with (its SHA-512 "
            "differs)",
            where=f"onnxruntime-web {VERSION}",
        )
    write_bytes(path, data)
    return data


def _is_it(data: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(data).digest()).decode() == _SHA512


def _download() -> bytes:
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or "https://registry.npmjs.org"
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/{_NAME}"
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            data: bytes = response.read(_SIZE)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StageError(
            f"cannot be fetched from {url}: {getattr(error, 'reason', error)}",
            where=f"onnxruntime-web {VERSION}",
            fix="where there is a network: `npm pack onnxruntime-web@"
            f"{VERSION}`; then put {_NAME} into {cache()}",
        ) from None
    return data
