"""`browser`: a page that measures with ONNX Runtime Web in whatever opens it, a phone or this machine."""

from __future__ import annotations

import base64
import json
import queue
import socket
import sys
import time
import webbrowser
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from edgekd.errors import StageError, UsageError
from edgekd.profile.browser import assets
from edgekd.profile.browser.answer import OUTPUT_LIMIT, accept, references
from edgekd.profile.browser.server import TYPES, Exchange, serving
from edgekd.profile.device.measure import (
    BLOCK_SECONDS,
    STEADY_BLOCKS,
    STEADY_SHARE,
    WARM_UP_SECONDS,
)
from edgekd.profile.device.runtimes.onnxruntime import ONE_NODE
from edgekd.profile.parcel import pack
from edgekd.profile.received import printable
from edgekd.profile.targets import Browser as Settings
from edgekd.profile.targets import Target
from edgekd.profile.transport import transport

_PAGE = Path(assets.__file__).parent / "page"
# A page says that it is alive every 5 s, every minute where the browser slows it down.
_SILENCE_SECONDS = 90
# A sample takes at least this many ticks of the browser's clock: they are 0.5 % of it then.
_TICKS_PER_SAMPLE = 200


@transport("browser")
class Browser:
    """Each model in a worker with a runtime of its own; outputs are held against ONNX Runtime's here."""

    runtimes: ClassVar = dict.fromkeys(assets.BUILDS, ("onnx",))
    by_hand: ClassVar = True

    def measure(
        self,
        target: Target,
        plan: dict[str, Any],
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Serve the page until somebody has opened it and it has sent its result."""
        settings = target.browser or Settings()
        tls = _tls(settings)
        exchange = _exchange(plan)
        with serving(exchange, settings.host, settings.port, tls) as port:
            url = _url(settings, port, exchange.token)
            _announce(url, settings, port)
            if settings.open and not webbrowser.open(url):
                print("  no browser could be started here: open the link yourself", file=sys.stderr)
            result, samples = _wait(exchange, tell, settings.wait_seconds, f"target {target.name}")
        with (folder / "samples.npz").open("wb") as file:
            np.savez(file, **samples)  # type: ignore[arg-type]
        (folder / "result.json").write_text(json.dumps(result, indent=2))


def _exchange(plan: dict[str, Any]) -> Exchange:
    """What the page may have: itself and the runtime; then the models and the inputs."""
    inputs = np.load(plan["inputs"], allow_pickle=False)
    if inputs.dtype.kind != "f":
        raise UsageError(
            "the page feeds floating-point numbers, and these models take token ids",
            where="profile.targets",
            fix="measure them on a target of another transport",
        )
    parcel = pack(plan)
    builds = {model["runtime"]: assets.BUILDS[model["runtime"]] for model in plan["models"]}
    runtime = assets.read(name for build in builds.values() for name in build.files)
    batch_sizes = {"latency": plan["batch_size"], "throughput": plan["throughput_batch_size"]}
    # Of MLPerf's scenarios only those that need nothing else: MultiStream is not measured there.
    phases = [phase for phase in plan.get("phases", batch_sizes) if phase in batch_sizes]
    here = {**plan, "batch_sizes": batch_sizes, "phases": phases}
    expected = references(here, inputs)
    shown = {
        "models": [
            _shown(model, builds[model["runtime"]], parcel.files) for model in parcel.plan["models"]
        ],
        "inputs": "inputs",
        "input_shape": inputs.shape,
        "output_limit": OUTPUT_LIMIT,
        "one_node": base64.b64encode(ONE_NODE).decode(),
        "procedure": {
            "block_seconds": BLOCK_SECONDS,
            "steady_blocks": STEADY_BLOCKS,
            "steady_share": STEADY_SHARE,
            "warmup_seconds": WARM_UP_SECONDS,
            "ticks_per_sample": _TICKS_PER_SAMPLE,
        },
        **{
            key: here[key]
            for key in ("batch_sizes", "phases", "interval", "min_seconds", "max_seconds")
        },
    }
    page = {path.name: path.read_bytes() for path in _PAGE.iterdir() if path.suffix in TYPES}
    models = {name: path for name, path in parcel.files.items() if name != parcel.plan["inputs"]}
    return Exchange(
        page={**page, **{f"ort/{name}": content for name, content in runtime.items()}},
        data={**models, "inputs": inputs.astype("<f4").tobytes()},
        plan=shown,
        accept=lambda body: accept(body, here, expected),
    )


def _shown(model: dict[str, Any], build: assets.Build, files: dict[str, Path]) -> dict[str, Any]:
    """A model as the page needs it; `files` are the model's own, then its external data."""
    folder = PurePosixPath(model["path"]).parent
    parts = [name for name in files if PurePosixPath(name).parent == folder]
    return {
        "id": model["id"],
        "runtime": model["runtime"],
        "module": f"ort/{build.module}",
        "provider": build.provider,
        "files": [model["path"], *(name for name in parts if name != model["path"])],
        "threads": model["threads"],
        "precision": model["precision"],
    }


def _wait(
    exchange: Exchange,
    tell: Callable[[dict[str, Any]], None],
    wait_seconds: float,
    where: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The result. Raises StageError when nobody comes, the page falls silent, or it gives up."""
    opened, until = False, time.monotonic() + wait_seconds
    while True:
        try:
            kind, value = exchange.reports.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            text = f"nobody opened the page within {wait_seconds:g} s"
            if opened:
                text = f"the page said nothing for {_SILENCE_SECONDS} s: was it closed?"
            raise StageError(text, where=where, fix="run the same command again") from None
        opened, until = True, time.monotonic() + _SILENCE_SECONDS
        if kind == "claimed":
            print(f"  opened from {value}", file=sys.stderr)
        elif kind == "progress":
            tell(value)
        elif kind == "failed":
            raise StageError(f"the browser says: {printable(value)}", where=where)
        elif kind == "error":
            raise StageError(value.what, where=where, fix=value.fix)
        elif kind == "result":
            result: tuple[dict[str, Any], dict[str, np.ndarray]] = value
            return result


def _tls(settings: Settings) -> tuple[Path, Path] | None:
    if settings.certificate is None or settings.key is None:
        return None
    paths = Path(settings.certificate).expanduser(), Path(settings.key).expanduser()
    for path in paths:
        if not path.is_file():
            raise UsageError("no such file", where=str(path))
    return paths


def _url(settings: Settings, port: int, token: str) -> str:
    address = ip_address(settings.host)
    host = str(address) if not address.is_unspecified else _own_address(address.version)
    scheme = "https" if settings.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{token}/"


def _own_address(version: int) -> str:
    """The address that other machines of the network reach this one by. Nothing is sent."""
    family, elsewhere = (
        (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))
        except OSError:
            return "127.0.0.1" if version == 4 else "::1"
        return str(probe.getsockname()[0])


def _announce(url: str, settings: Settings, port: int) -> None:
    """The link on standard error; beyond this machine with a QR code and what plain http lacks."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"  open in a browser, once: {url}")
    cable = f"adb reverse tcp:{port} tcp:{port}"
    if ip_address(settings.host).is_loopback:
        say(f"  for a phone on a cable: {cable}, then open it there; in a network: --host 0.0.0.0")
        return
    import segno

    say(_half_blocks(segno.make(url, micro=False).matrix_iter(border=2)))
    if not settings.certificate:
        say(
            "  over plain http browsers give one thread and a coarse clock; for more: --certificate "
            f"and --key,\n  or a cable: {cable} and http://localhost:{port}/… on the phone"
        )


def _half_blocks(rows: Any) -> str:
    """Two rows of modules per line, light ones drawn: for a dark terminal, and most cameras read both."""
    lines = [[bool(dark) for dark in row] for row in rows]
    if len(lines) % 2:
        lines.append([False] * len(lines[0]))
    blocks = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}
    return "\n".join(
        "  " + "".join(blocks[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(lines[::2], lines[1::2], strict=True)
    )
