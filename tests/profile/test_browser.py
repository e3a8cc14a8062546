"""The page in real headless Chromium; strangers at its server; answers that are none; the npm package."""

import base64
import contextlib
import http.client
import http.server
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgekd.config.schema import Gate
from edgekd.errors import StageError, UsageError
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import measured as figures_of
from edgekd.profile.browser import assets
from edgekd.profile.browser.answer import references
from edgekd.profile.device.intervals import quantile_interval
from edgekd.profile.targets import find
from edgekd.profile.transports.browser import Browser
from edgekd.results import ProfileReport
from tests.chromium import chromium

LINK = re.compile(r"http://127\.0\.0\.1:\d+/[\w-]{22}/")
OVER = "['Measured in this browser', 'Not measured'].includes(document.querySelector('h1')?.textContent)"


@pytest.fixture(scope="module", autouse=True)
def package():
    """The npm package, in the user's cache or fetched."""
    try:
        assets.read(assets.BUILDS["onnxruntime-web"].files)
    except StageError as error:
        pytest.skip(f"needs the npm package onnxruntime-web: {error}")


# ---- In Chromium


@contextlib.contextmanager
def bench(*arguments):
    """`edgekd bench … --target browser` and the link that it prints."""
    command = [sys.executable, "-m", "edgekd", "bench", *map(str, arguments), "--target", "browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said, link = [], None
            for line in process.stderr:
                said.append(line)
                if link := LINK.search(line):
                    break
            assert link, "".join(said)
            yield process, link.group()
        finally:
            process.kill()


@pytest.fixture(scope="class")
def done(exported, tmp_path_factory):
    """Teacher and student, in files with names that have to be escaped; and the page afterwards."""
    folder = tmp_path_factory.mktemp("with spaces")
    teacher, student = folder / "der Lehrer #1?.onnx", folder / "élève%20.onnx"
    shutil.copy(exported.folder / "teacher.onnx", teacher)
    shutil.copy(exported.folder / "student.onnx", student)
    with chromium() as browser, bench(teacher, student, "--max-seconds", 0.6, "--json") as run:
        process, link = run
        browser.open(link)
        browser.wait_for(OVER, 240)
        isolated = browser.evaluate("crossOriginIsolated")
        out, said = process.communicate(timeout=240)
        assert process.returncode == 0, (said, browser.text(), browser.complaints)
        yield SimpleNamespace(
            browser=browser, isolated=isolated, report=ProfileReport.model_validate_json(out)
        )


class TestInChromium:
    def test_teacher_and_student_are_measured_in_turns(self, done):
        report = done.report
        assert [m.role for m in report.measurements] == ["teacher", "student"]
        for m in report.measurements:
            assert (m.provenance, m.runtime, m.runtime_version, m.precision, m.threads) == (
                "measured", "onnxruntime-web", assets.VERSION, "f32", 1,
            )  # fmt: skip
            assert m.latency.count >= 10
            assert m.latency.kind in ("call", "mean")
            assert m.latency.p50_interval[0] <= m.latency.p50 <= m.latency.p50_interval[1]
            assert (m.latency.batch_size, m.throughput_latency.batch_size) == (1, 32)
            assert m.memory.model is None
            assert m.memory.wasm_heap >= 2**20
        teacher, student = report.measurements
        (comparison,) = report.comparisons
        ratio = teacher.latency.p50 / student.latency.p50
        assert comparison.speedup == pytest.approx(ratio, rel=0.1)
        assert comparison.memory_ratio is None

    def test_it_computes_what_onnxruntime_computes(self, done):
        assert all(0 <= m.parity_error < 1e-5 for m in done.report.measurements)

    def test_the_page_is_isolated_and_has_no_complaints(self, done):
        said = done.report.environment["browser"]
        assert done.isolated is said["cross_origin_isolated"] is True
        assert "Chrome" in said["user_agent"]
        assert 0 < said["clock_tick_seconds"] < 1e-4
        assert done.browser.complaints == []

    def test_the_page_shows_what_was_measured_and_fits_a_phone(self, done):
        page = done.browser
        assert re.search(r"student [\d.]+× (faster|slower)", page.text())
        figures = page.evaluate("[...document.querySelectorAll('.figure')].map(e => e.textContent)")
        assert len(figures) == 2
        assert all(re.fullmatch(r"[\d.]+ (ns|µs|ms|s)", figure) for figure in figures)
        for width in (320, 390, 1280):
            page.ask(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=800, deviceScaleFactor=1, mobile=width < 1000,
            )  # fmt: skip
            assert page.evaluate("document.documentElement.scrollWidth") <= width

    @pytest.mark.parametrize("count", [1, 5, 6, 17, 200, 3001])
    def test_the_page_takes_the_same_interval_of_the_median(self, done, count):
        values = np.random.default_rng(count).random(count).round(6)
        found = done.browser.evaluate(
            "import(new URL('procedure.js', location.href))"
            f".then(module => module.medianInterval({values.tolist()}))"
        )
        expected = quantile_interval(values, 0.5)
        assert found == (None if expected is None else pytest.approx(list(expected)))

    def test_what_a_browser_does_not_tell_is_undecided_not_passed(self, done):
        budgets = [
            {"metric": "memory", "max": "1000 GiB"},
            {"metric": "memory_ratio", "min": 0.001},
        ]
        gate = check_budgets(Gate(budgets=budgets), list(figures_of(done.report)))
        assert [check.verdict for check in gate.checks] == ["inconclusive"] * len(budgets)
        assert all("not measured there" in check.text for check in gate.checks)
        assert gate.exit_code == 4

    def test_stop_ends_it_and_a_second_browser_gets_nothing(self, exported):
        with chromium() as browser, bench(exported.folder / "student.onnx") as (process, link):
            browser.open(link)
            browser.wait_for("document.querySelector('.figure')?.textContent.includes('s')")
            stranger = Client(link)
            assert stranger.get("")[0] == 410
            assert stranger.post("claim", {})[0] == 410
            browser.evaluate("document.getElementById('stop').click()")
            out, said = process.communicate(timeout=240)
            assert "stopped by hand" in browser.text()
        assert (process.returncode, out) == (3, "")
        assert "the browser says: stopped by hand" in said
        assert browser.complaints == []


# ---- At the server, without a browser


class Client:
    """Whoever has the link, and what it is answered."""

    def __init__(self, link):
        parts = urlsplit(link)
        self.host, self.port, self.base = parts.hostname, parts.port, parts.path

    def claim(self):
        status, answer = self.post("claim", {})
        assert status == 200
        self.base = f"/{answer['session']}/"
        return answer["plan"]

    def get(self, path):
        return self.ask("GET", self.base + path)

    def post(self, path, value):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        status, answer = self.ask("POST", self.base + path, body)
        return status, json.loads(answer)

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_accept_encoding=True)
            if body is not None and not headers:
                headers = {"Content-Length": str(len(body))}
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders(body)
            response = connection.getresponse()
            self.headers = response.headers
            return response.status, response.read()


def plan_of(exported, folder):
    np.save(folder / "inputs.npy", exported.inputs)
    models = [
        {"id": f"browser/onnxruntime-web/{role}", "runtime": "onnxruntime-web", "threads": 1,
         "precision": "f32", "variant": "f32", "path": str(exported.folder / f"{role}.onnx"),
         "parts": [str(exported.folder / f"{role}.onnx")]}
        for role in ("teacher", "student")
    ]  # fmt: skip
    return {
        "models": models, "inputs": str(folder / "inputs.npy"), "root": str(folder),
        "batch_size": 1, "throughput_batch_size": 8, "interval": 0.2, "launches": 5,
        "min_seconds": 0.1, "max_seconds": 0.6,
    }  # fmt: skip


# Unpacked once for all tests.
_READ = cache(assets.read)


def read_once(names):
    return _READ(tuple(names))


@pytest.fixture
def measuring(exported, tmp_path, monkeypatch):
    """`Browser.measure` while it waits: its link, its folder, what it told; `end()` is its error."""
    said, told, errors = io.StringIO(), [], []
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(assets, "read", read_once)
    inputs, folder = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    folder.mkdir()
    plan = plan_of(exported, inputs)
    target = find("browser", tmp_path)
    target = target.model_copy(
        update={"browser": target.browser.model_copy(update={"wait_seconds": 20})}
    )

    def measure():
        try:
            Browser().measure(target, plan, folder, told.append)
        except StageError as error:
            errors.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    until = time.monotonic() + 20
    while not LINK.search(said.getvalue()) and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.02)

    def end():
        thread.join(20)
        assert not thread.is_alive()
        return errors[0] if errors else None

    client = Client(LINK.search(said.getvalue()).group())
    link = client.base
    yield SimpleNamespace(
        client=client, link=link, folder=folder, plan=plan, told=told, end=end, inputs=exported.inputs
    )  # fmt: skip
    if thread.is_alive():
        with contextlib.suppress(OSError):
            if client.base == link:
                client.claim()
            client.post("failed", {"error": "the test is over"})
        thread.join(20)


def answer_of(plan, inputs):
    """What a page that measured this plan would post."""
    here = {
        **plan,
        "phases": ["latency", "throughput"],
        "batch_sizes": {"latency": 1, "throughput": 8},
    }
    expected = references(here, inputs)

    def phase(id, name):
        return {
            "batch_size": here["batch_sizes"][name], "warmup": 5, "settled": True, "calls": 2,
            "seconds": [1e-3] * 12, "rounds": [i // 2 for i in range(12)],
            "outputs": base64.b64encode(expected[id, name].tobytes()).decode(),
        }  # fmt: skip

    return {
        "models": {
            m["id"]: {
                "load": 0.1, "first": 0.01, "version": "1.30.0", "precision": "f32", "threads": 1,
                "heap": {"baseline": 1, "peak": 2},
                **{name: phase(m["id"], name) for name in ("latency", "throughput")},
            }
            for m in plan["models"]
        },
        "environment": {
            "user_agent": "a test", "device": None, "architecture": None, "system": None,
            "cores": 2, "memory_gib_rounded": None, "cross_origin_isolated": True,
            "clock_tick_seconds": 5e-6, "page_was_hidden": False,
        },
    }  # fmt: skip


def changed(answer, path, value):
    """The answer with one thing changed, as bytes; `*` is the first key."""
    node = answer
    *parents, last = path.split("/")
    for key in parents:
        node = node[next(iter(node)) if key == "*" else key]
    node[next(iter(node)) if last == "*" else last] = value
    return json.dumps(answer).encode()


def base64_of(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


LATENCY = "models/*/latency"
REFUSED = {
    "NaN seconds": (f"{LATENCY}/seconds", [float("nan")] * 12, "malformed"),
    "infinite seconds": (f"{LATENCY}/seconds", [float("inf")] * 12, "malformed"),
    "negative seconds": (f"{LATENCY}/seconds", [-1e-3] * 12, "malformed"),
    "seconds as text": (f"{LATENCY}/seconds", ["1"] * 12, "malformed"),
    "no seconds": (f"{LATENCY}/seconds", [], "malformed"),
    "fewer rounds": (f"{LATENCY}/rounds", [0] * 11, "malformed"),
    "rounds that jump": (f"{LATENCY}/rounds", [0] * 11 + [2], "malformed"),
    "rounds beyond memory": (f"{LATENCY}/rounds", [2**60] * 12, "malformed"),
    "other turns": (f"{LATENCY}/rounds", [0] * 12, "did not take turns"),
    "another batch": (f"{LATENCY}/batch_size", 2, "another batch size"),
    "no latency": (LATENCY, None, "a phase too many or too few"),
    "an unknown key": ("models/*/surprise", 1, "malformed"),
    "another precision": ("models/*/precision", "int8", "malformed"),
    "a version to inject": ("models/*/version", "1<script>", "malformed"),
    "a million cores": ("environment/cores", 10**6, "malformed"),
    "a long text": ("environment/user_agent", "x" * 301, "malformed"),
    "another model": ("models/stranger", None, "malformed"),
    "no models": ("models", {}, "other models"),
    "outputs of something else": (f"{LATENCY}/outputs", base64_of(np.ones(10)), "something else"),
    "too few outputs": (f"{LATENCY}/outputs", base64_of(np.ones(3)), "not as many"),
    "NaN outputs": (f"{LATENCY}/outputs", base64_of([np.nan] * 10), "something else"),
    "outputs that are no base64": (f"{LATENCY}/outputs", "!", "not as many"),
}


class TestAnswers:
    def test_a_whole_one_is_kept(self, measuring):
        client = measuring.client
        client.claim()
        progress = {"phase": "latency", "models": [measuring.plan["models"][0]["id"]],
                    "spent": 0.1, "width": None, "p50": [1e-3]}  # fmt: skip
        assert client.post("progress", progress)[0] == 200
        assert client.post("result", answer_of(measuring.plan, measuring.inputs))[0] == 200
        assert measuring.end() is None
        assert progress in measuring.told
        result = json.loads((measuring.folder / "result.json").read_text())
        for model in measuring.plan["models"]:
            assert result["models"][model["id"]]["parity_error"] == 0
        with np.load(measuring.folder / "samples.npz", allow_pickle=False) as samples:
            first = f"{measuring.plan['models'][0]['id']}/latency"
            assert samples[first].tolist() == [1e-3] * 12
            assert samples[f"{first}/launches"].tolist() == [0] * 12

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_is_wrong_is_refused_and_nothing_is_written(self, measuring, name):
        path, value, reason = REFUSED[name]
        body = changed(answer_of(measuring.plan, measuring.inputs), path, value)
        measuring.client.claim()
        status, answer = measuring.client.post("result", body)
        assert status == 422
        assert reason in answer["error"]
        assert reason in str(measuring.end())
        assert list(measuring.folder.iterdir()) == []

    @pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 50_000])
    def test_what_is_no_answer_is_refused(self, measuring, body):
        measuring.client.claim()
        assert measuring.client.post("result", body)[0] == 422
        assert "malformed" in str(measuring.end())
        assert list(measuring.folder.iterdir()) == []

    def test_one_that_is_too_large_is_not_even_read(self, measuring):
        client = measuring.client
        client.claim()
        status, _ = client.ask("POST", f"{client.base}result", b"", Content_Length=str(2**40))
        assert status == 413
        assert "too large" in str(measuring.end())
        assert list(measuring.folder.iterdir()) == []

    def test_a_reason_does_not_reach_the_terminal_as_it_is(self, measuring):
        measuring.client.claim()
        assert measuring.client.post("failed", {"error": "\x1b[2Jgone\n"})[0] == 200
        assert "the browser says:  [2Jgone" in str(measuring.end())

    @pytest.mark.parametrize("body", [
        b"{}", b"NaN", json.dumps({"phase": "latency", "models": ["\x1b[2J"], "spent": 1, "width": -1,
                                   "p50": [1]}).encode(),
    ])  # fmt: skip
    def test_malformed_progress_is_refused_and_the_measurement_goes_on(self, measuring, body):
        client = measuring.client
        client.claim()
        assert client.post("progress", body)[0] == 400
        assert client.post("result", answer_of(measuring.plan, measuring.inputs))[0] == 200
        assert measuring.end() is None


class TestStrangers:
    def test_only_the_token_opens_the_page(self, measuring):
        client, token = measuring.client, measuring.link.strip("/")
        wrong = ("", "x", token[:-1], token + "x", token.swapcase(), "None", "%C3%A9", "a" * 5000)
        for guess in wrong:
            for method, name in (("GET", ""), ("GET", "page.js"), ("POST", "claim")):
                path = f"/{guess}/{name}"
                status, answer = client.ask(method, path, b"{}")
                assert (status, token.encode() in answer) == (404, False), path
        assert client.get("")[0] == 200

    def test_the_link_works_once_and_gives_no_data_before(self, measuring):
        client = measuring.client
        assert client.get("")[0] == client.get("page.js")[0] == client.get("")[0] == 200
        assert client.get("inputs")[0] == 404
        plan = client.claim()
        model = plan["models"][0]["files"][0]
        assert client.get("inputs")[0] == 200
        assert client.get(model)[1] == (Path(measuring.plan["models"][0]["path"]).read_bytes())
        other = Client(f"http://127.0.0.1:{client.port}{measuring.link}")
        assert other.get("")[0] == 410
        assert other.post("claim", {})[0] == 410
        assert other.get(model)[0] == other.get("inputs")[0] == 404
        assert other.post("result", {})[0] == 404

    @pytest.mark.parametrize("path", [
        "../../../../../../etc/passwd", "..%2f..%2f..%2f..%2fetc/passwd", "%2e%2e/%2e%2e/etc/passwd",
        "files/../page.js", "/etc/passwd", "//etc/passwd", "ort/../../server.py", "server.py",
        "index.html%00.js", "%00", "..", ".", "files", "files/", "ort", "claim", "result",
        "C:/Windows/win.ini", "..\\..\\x", "page.js?x=1", "page.js/", "%ff", "%",
    ])  # fmt: skip
    def test_nothing_outside_the_table_is_served(self, measuring, path):
        client = measuring.client
        for _ in ("by the link", "in the session"):
            status, answer = client.get(path)
            assert (status, b"root:" in answer) == (404, False)
            if client.base == measuring.link:
                client.claim()

    def test_every_answer_is_isolated_and_may_load_nothing_else(self, measuring):
        client = measuring.client
        for path in ("", "page.js", "worker.js", "ort/ort.wasm.min.mjs", "nothing"):
            client.get(path)
            headers = client.headers
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in headers
            assert "Python" not in headers["Server"]
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';")
            assert "unsafe-inline" not in policy
            assert "http" not in policy

    @pytest.mark.parametrize(("method", "headers", "status"), [
        ("POST", {"Content_Length": "-1"}, 411), ("POST", {"Content_Length": "٣"}, 411),
        ("POST", {"Content_Length": "9" * 30}, 411), ("POST", {"Transfer_Encoding": "chunked"}, 411),
        ("PUT", {"Content_Length": "0"}, 501), ("OPTIONS", {"Origin": "https://example.com"}, 501),
    ])  # fmt: skip
    def test_requests_of_other_kinds_are_refused(self, measuring, method, headers, status):
        client = measuring.client
        headers = {name: value.encode() for name, value in headers.items()}
        assert client.ask(method, f"{client.base}claim", None, **headers)[0] == status
        assert client.claim()

    def test_what_is_no_http_does_not_stop_it(self, measuring):
        address = ("127.0.0.1", measuring.client.port)
        for noise in (b"\x16\x03\x01" + bytes(200), b"GET /\r\n\r\n", b"A" * 70_000, b""):
            with contextlib.suppress(OSError), socket.create_connection(address, 10) as connection:
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1 << 16)
        assert measuring.client.claim()

    def test_after_the_result_nothing_is_taken(self, measuring):
        client = measuring.client
        client.claim()
        answer = answer_of(measuring.plan, measuring.inputs)
        assert client.post("result", answer)[0] == 200
        with contextlib.suppress(OSError):
            assert client.post("result", answer)[0] in (409, 410)
        assert measuring.end() is None


def test_nobody_came(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "read", read_once)
    target = find("browser", tmp_path)
    page = target.browser.model_copy(update={"wait_seconds": 0.05})
    with pytest.raises(StageError, match=r"nobody opened the page within 0\.05 s"):
        Browser().measure(
            target.model_copy(update={"browser": page}), plan_of(exported, tmp_path), tmp_path, print
        )  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), [
    ("browser: {host: example.com}", "should be an IP address"),
    ("browser: {host: '127.0.0.1; rm -rf /'}", "should be an IP address"),
    ("browser: {port: 70000}", "less than or equal to 65535"),
    ("browser: {certificate: a.pem}", "both certificate and key"),
    ("runtimes: [openvino]", "transport browser has no runtime 'openvino'"),
    ("limits: {memory: 64 MiB}", "cannot be held to limits"),
])  # fmt: skip
def test_a_descriptor_that_cannot_be_meant_is_refused(tmp_path, text, reason):
    folder = tmp_path / "targets"
    folder.mkdir()
    lines = ["name: mine", "class: mobile", "transport: browser", "runtimes: [onnxruntime-web]"]
    kept = [line for line in lines if line.split(":")[0] != text.split(":")[0]]
    (folder / "mine.yaml").write_text("\n".join([*kept, text]))
    with pytest.raises(UsageError, match=re.escape(reason)):
        find("mine", tmp_path)


# ---- The npm package


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry that sends what its `content` is, and an empty cache."""
    state = SimpleNamespace(content=b"", asked=[], cache=tmp_path / "cache/edgekd")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


class TestPackage:
    def test_it_is_fetched_once_and_a_damaged_copy_again(self, registry, monkeypatch):
        with monkeypatch.context() as patch:
            patch.delenv("XDG_CACHE_HOME")
            registry.content = (
                assets.cache() / f"onnxruntime-web-{assets.VERSION}.tgz"
            ).read_bytes()
        module = assets.BUILDS["onnxruntime-web"].module
        for _ in range(2):
            assert b"InferenceSession" in assets.read([module])[module]
        assert registry.asked == [f"/onnxruntime-web/-/onnxruntime-web-{assets.VERSION}.tgz"]
        (kept,) = registry.cache.iterdir()
        kept.write_bytes(kept.read_bytes()[:-1])
        assets.read([module])
        assert len(registry.asked) == 2

    def test_another_package_is_refused_and_not_kept(self, registry):
        registry.content = b"something else"
        with pytest.raises(StageError, match="SHA-512"):
            assets.read(["ort.wasm.min.mjs"])
        assert not registry.cache.exists()

    def test_offline_it_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:1")
        with pytest.raises(
            StageError, match=r"cannot be fetched from http://127\.0\.0\.1:1/.*"
        ) as e:
            assets.read(["ort.wasm.min.mjs"])
        assert "npm pack onnxruntime-web@" in str(e.value)
        assert str(tmp_path / "edgekd") in str(e.value)
