"""Serves one measurement to one page: an explicit table of objects, a link that works once.

Whoever opens the link first gets a session of its own, a secret in the path of all that follows; the
link is void then. Nothing is looked up in the file system by what a request says.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import ValidationError

from edgekd.errors import EdgekdError, UsageError
from edgekd.profile.browser.answer import Failure, Progress, first_problem

_SMALL, LARGE = 64 << 10, 32 << 20
_IDLE_SECONDS = 60
_HEADERS = {
    # Cross-origin isolation: threads and the fine clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self'; img-src data:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".wasm": "application/wasm",
}


@dataclass
class Exchange:
    """What a page may have, and what it says.

    `page` is for whoever has the link (code, no data), `data` for the session alone; both map a
    path to its content. `accept` takes the posted result, and raises EdgekdError when it is none.
    `reports` gets ("claimed", address), ("alive", None), ("progress", event), ("result", …) from
    `accept`, ("error", EdgekdError) or ("failed", text).
    """

    page: dict[str, bytes]
    data: dict[str, bytes | Path]
    plan: dict[str, Any]
    accept: Callable[[bytes], Any]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    reports: queue.Queue[tuple[str, Any]] = field(default_factory=queue.Queue)
    session: str | None = None
    finished: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def serving(
    exchange: Exchange, host: str, port: int, tls: tuple[Path, Path] | None
) -> Iterator[int]:
    """Serve until the block is left; yields the port. `tls` is a certificate and its key.

    Raises UsageError when the address cannot be used.
    """
    handler = type("Handler", (_Handler,), {"exchange": exchange})
    try:
        server = _Server((host, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot be used: {reason}", where=f"{host} port {port}") from None
    with server:
        if tls is not None:
            server.socket = _encrypted(server.socket, *tls)
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            # Connections that are open still get no more.
            exchange.finished = True
            server.shutdown()
            thread.join()


def _encrypted(listening: socket.socket, certificate: Path, key: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot be used for https: {getattr(error, 'strerror', None) or error}",
            where=f"{certificate}, {key}",
        ) from None
    # The handshake is for the thread of a connection, not for the one that accepts them all.
    return context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    exchange: Exchange
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """An object of the table, or 404."""
        key, _, path = self.path.removeprefix("/").partition("/")
        path = unquote(path)
        exchange = self.exchange
        if exchange.finished:
            return self._refuse(410, "this measurement is over")
        in_session = _same(key, exchange.session)
        if not in_session and not _same(key, exchange.token):
            return self._refuse(404, "there is nothing here")
        if path == "" and not in_session:
            if exchange.session is not None:
                return self._refuse(410, "this link was used already; start edgekd again")
            path = "index.html"
        if path in exchange.page:
            return self._send(200, TYPES[Path(path).suffix], exchange.page[path])
        if in_session and path in exchange.data:
            content = exchange.data[path]
            type_ = TYPES.get(Path(path).suffix, "application/octet-stream")
            return self._send(
                200, type_, content if isinstance(content, bytes) else content.read_bytes()
            )
        return self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        """Claim the link, or tell something in the session that it gave."""
        key, _, path = self.path.removeprefix("/").partition("/")
        if _same(key, self.exchange.token) and path == "claim":
            return self._claim()
        if not _same(key, self.exchange.session):
            return self._refuse(404, "there is nothing here")
        actions: dict[str, Callable[[bytes], tuple[str, Any]]] = {
            "alive": lambda body: ("alive", None),
            "progress": self._progress,
            "failed": lambda body: ("failed", Failure.model_validate_json(body).error),
            "result": lambda body: ("result", self.exchange.accept(body)),
        }
        if path not in actions:
            return self._refuse(404, "there is nothing here")
        if self.exchange.finished:
            return self._refuse(409, "this measurement is over")
        body = self._body(LARGE if path == "result" else _SMALL)
        if body is None:
            if path == "result":
                self.exchange.reports.put(("failed", "the browser's result is too large"))
            return None
        # One result, and nothing after it.
        with self.exchange.lock:
            if self.exchange.finished:
                return self._refuse(409, "this measurement is over")
            try:
                report = actions[path](body)
            except ValidationError as error:
                return self._refuse(400, f"malformed: {first_problem(error)}")
            except EdgekdError as error:
                self.exchange.finished = True
                self._refuse(422, error.what)
                return self.exchange.reports.put(("error", error))
            self.exchange.finished = path in ("failed", "result")
        self._answer(200, {})
        return self.exchange.reports.put(report)

    def _claim(self) -> None:
        exchange = self.exchange
        if self._body(_SMALL) is None:
            return None
        with exchange.lock:
            if exchange.session is not None:
                return self._refuse(410, "this link was used already; start edgekd again")
            exchange.session = secrets.token_urlsafe(16)
        exchange.reports.put(("claimed", self.client_address[0]))
        return self._answer(200, {"session": exchange.session, "plan": exchange.plan})

    def _progress(self, body: bytes) -> tuple[str, Any]:
        event = Progress.model_validate_json(body).model_dump()
        known = {model["id"] for model in self.exchange.plan["models"]}
        return ("progress", event) if set(event["models"]) <= known else ("alive", None)

    def _body(self, limit: int) -> bytes | None:
        """The body of a request; None when it was refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            self._refuse(411, "its length is not given")
            return None
        if int(length) > limit:
            self._refuse(413, f"it is larger than {limit >> 10} KiB")
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _refuse(self, status: int, text: str) -> None:
        # What was not read of the request must not be taken for the next one.
        self.close_connection = True
        self._answer(status, {"error": text})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, type_: str, content: bytes) -> None:
        self.send_response(status)
        headers = {**_HEADERS, "Content-Type": type_, "Content-Length": str(len(content))}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Requests that are no HTTP, or of other methods: the same short answer as all others."""
        self._refuse(code, message or "refused")

    def version_string(self) -> str:
        """Nothing for strangers."""
        return "edgekd"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: standard error is for the user."""


def _same(given: str, secret: str | None) -> bool:
    return secret is not None and secrets.compare_digest(given.encode(), secret.encode())
