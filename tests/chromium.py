"""Real headless Chromium, driven over its DevTools pipe: no WebSocket, no driver package."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# One that hangs must not stay.
_SECONDS = "600"


class Chromium:
    """One tab. `complaints` has every console warning, error and uncaught exception so far."""

    def __init__(self, commands, messages):
        self.commands, self.messages = commands, messages
        self.buffer, self.number, self.complaints = b"", 0, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    session = None

    def ask(self, method, **params):
        """Send a command of the DevTools protocol and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.messages], [], [], seconds)
            assert ready, "Chromium does not answer"
            data = os.read(self.messages, 1 << 20)
            assert data, "Chromium has ended"
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        self._listen(message.get("method"), message.get("params", {}))
        return message

    def _listen(self, method, params):
        if method == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(str([a.get("value", a) for a in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, url):
        self.ask("Page.navigate", url=url)

    def evaluate(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression, seconds=60):
        """Until the expression is true; its value."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{expression} is not true after {seconds} s")

    def text(self):
        return self.evaluate("document.body?.innerText ?? ''")

    def screenshot(self, path):
        image = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))


@contextlib.contextmanager
def chromium(*flags):
    """A browser with a new profile; skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs the package chromium")
    theirs_in, commands = os.pipe()
    messages, theirs_out = os.pipe()
    # The pipe is at 3 and 4; bash puts ours there whatever their numbers are.
    script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    with tempfile.TemporaryDirectory(prefix="edgekd-chromium-", ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            ["bash", "-c", script, "-", "timeout", _SECONDS, program, *FLAGS, f"--user-data-dir={home}",
             "--remote-debugging-pipe", *flags],
            pass_fds=(theirs_in, theirs_out), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Chromium(commands, messages)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(commands)
            os.close(messages)
