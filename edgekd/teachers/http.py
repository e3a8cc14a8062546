"""Requests to a server that may be slow, busy, restarting or gone: retried, timed, with clear errors."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekd.errors import StageError, UsageError

# What may be otherwise a moment later.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 30.0
_MAX_BYTES = 256 * 2**20


class Unreachable(StageError):
    """Nobody answers there, or not in time, or not with a certificate that can be trusted."""


class Client:
    """Connections to one server, shared by threads.

    `timeout` is in seconds, of connecting and of every answer; failures that may pass are tried
    `retries` times more, after pauses of `pause`·2ⁱ seconds at random between half and all of it.
    `ca` is a file of certificates to trust instead of the system's. `key` is the name of the
    environment variable that holds a bearer token, which goes nowhere but into the request.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retries: int,
        pause: float,
        connections: int,
        ca: Path | None = None,
        key: str | None = None,
    ) -> None:
        urllib3 = _urllib3()
        self.url, self.retries, self.pause = url.rstrip("/"), retries, pause
        self.requests = 0
        self._stop = threading.Event()
        self._secret = _secret(key)
        self._headers = {"Content-Type": "application/json"}
        if self._secret:
            self._headers["Authorization"] = f"Bearer {self._secret}"
        if ca is not None and not ca.is_file():
            raise UsageError(f"no such file: {ca}", where="teacher.args.ca")
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            block=True,
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            ca_certs=None if ca is None else str(ca),
            cert_reqs="CERT_REQUIRED",
        )

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return self._request("GET", path, None)

    def post(self, path: str, value: Any) -> Any:
        """The JSON that is answered to the JSON `value`."""
        return self._request("POST", path, json.dumps(value).encode())

    def stop(self) -> None:
        """Whoever waits for its next try gives up."""
        self._stop.set()

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        after = 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                self._wait(attempt - 1, after)
            self.requests += 1
            status, text, problem, after = self._once(method, path, body)
            if status is not None and status < 400:
                return _parsed(text, self.url + path)
            if status is not None and status not in _PASSING:
                raise refusal(status, problem, self.url + path)
            if self._stop.is_set():
                break
        tried = f" (tried {attempt + 1} times)" if attempt else ""
        if status == 429:
            raise refusal(429, problem + tried, self.url + path)
        kind = Unreachable if status is None else StageError
        raise kind(
            f"{problem}{tried}",
            where=self.url + path,
            fix="when it answers again, run the same command: what was collected is kept",
        )

    def _once(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[int | None, bytes, str, float]:
        """(status, body, what went wrong, seconds that the server asks to wait)."""
        exceptions = _urllib3().exceptions
        try:
            response = self._pool.request(
                method, self.url + path, body=body, headers=self._headers,
                retries=False, redirect=False, preload_content=False,
            )  # fmt: skip
            try:
                text = self._without_secret(response.read(_MAX_BYTES))
            finally:
                response.release_conn()
        except exceptions.SSLError as error:
            raise Unreachable(
                f"its certificate is not trusted: {_reason(error)}",
                where=self.url,
                fix="if it is the right server, give the file of its authority's certificate: "
                "teacher.args: {ca: FILE}",
            ) from None
        except exceptions.NewConnectionError as error:
            return None, b"", f"the server cannot be reached: {_reason(error)}", 0.0
        except exceptions.TimeoutError as error:
            connecting = isinstance(error, exceptions.ConnectTimeoutError)
            what = "cannot be connected to in time" if connecting else "does not answer in time"
            return None, b"", f"the server {what}", 0.0
        except (exceptions.HTTPError, OSError) as error:
            return None, b"", f"the server cannot be reached: {_reason(error)}", 0.0
        problem = f"the server says {response.status}: {_message(text)}"
        return response.status, text, problem, _seconds(response.headers.get("Retry-After"))

    def _without_secret(self, text: bytes) -> bytes:
        """Servers repeat a wrong key in their complaint."""
        return text.replace(self._secret.encode(), b"***") if self._secret else text

    def _wait(self, attempt: int, after: float) -> None:
        longest = min(_LONGEST_PAUSE, self.pause * 2**attempt)
        self._stop.wait(max(after, longest * random.uniform(0.5, 1)))


def check_url(model: str, schemes: tuple[str, ...]) -> None:
    """Raises ValueError for an address that cannot be used, or with a secret in it."""
    parts = urlsplit(model)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{model.partition('@')[2] or model}: {error}") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise ValueError(f"should be like {schemes[0]}://HOST:PORT/MODEL")
    if parts.username is not None or parts.password is not None or parts.query:
        # Not repeated here: it would be in logs.
        raise ValueError(
            "an address with a name, password or query in it would end up in logs and reports; keys "
            "come from the environment variable that args.key names"
        )


def refusal(status: int, problem: str, where: str) -> StageError:
    """What a status means that no trying again can change."""
    if status in (401, 403):
        return StageError(
            problem, where=where,
            fix="teacher.args: {key: NAME} names the environment variable with the key",
        )  # fmt: skip
    if status in (402, 429):
        return StageError(
            f"the quota is exhausted: {problem}", where=where,
            fix="what was collected is kept; run the same command when there is quota again",
        )  # fmt: skip
    return StageError(problem, where=where)


def _secret(key: str | None) -> str:
    if key is None:
        return ""
    secret = os.environ.get(key, "").strip()
    if not secret:
        raise UsageError(f"the environment variable {key} is not set", where="key")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise UsageError(f"the environment variable {key} holds no key", where="key")
    return secret


def _urllib3() -> Any:
    try:
        import urllib3
    except ImportError:
        raise UsageError(
            "asking a server needs urllib3", fix="pip install 'edgekd[remote]'"
        ) from None
    return urllib3


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise StageError(f"the server's answer is not JSON: {text[:80]!r}", where=where) from None


def _message(text: bytes) -> str:
    """The `error` of an answer, in one short line."""
    try:
        value = json.loads(text)
        value = value.get("error") or value.get("detail") or value.get("message") or value
        value = value.get("message", value) if isinstance(value, dict) else value
    except (ValueError, AttributeError):
        value = text.decode(errors="replace")
    return " ".join(str(value).split())[:300] or "nothing"


def _seconds(text: str | None) -> float:
    try:
        return min(300.0, max(0.0, float(text or 0)))
    except ValueError:
        return 0.0


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[-200:] or type(error).__name__
