"""trend.html: one inert file with a table under every plot."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from edgekd.history.page import render
from edgekd.history.series import Filter, group
from tests.history.entries import HOSTILE, commit, days, entry


@pytest.fixture(scope="module")
def page():
    values = 0.002 * np.exp(0.01 * np.random.default_rng(2).normal(size=30))
    values[15:] *= 1.08
    entries = [
        *days(values, runtime="onnxruntime"),
        *days(2 * values[::-1], runtime="openvino", noisy=True, provenance="emulated"),
        *days(np.full(3, 0.9), metric="class_recall", label=HOSTILE, target=None, run=HOSTILE),
        *days(
            [1.0], target=HOSTILE, device=HOSTILE, branch=HOSTILE, metric="user.x", runtime=HOSTILE
        ),
        entry(40, commit=None, branch=None, interval=None),
    ]
    return render(group(entries, Filter(label="*")))


def test_it_loads_nothing_and_runs_nothing(page):
    class Links(HTMLParser):
        found = []

        def handle_starttag(self, tag, attributes):
            assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
            assert not [name for name, _ in attributes if name.startswith("on")]
            self.found += [v for n, v in attributes if n in ("src", "href", "xlink:href")]

    parser = Links()
    parser.feed(page)
    assert all(link.startswith(("#", "data:,")) for link in parser.found)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!#)", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert len(page) < 400_000


def test_change_points_and_values_are_in_words_too(page):
    changes, rest = page.split('<section aria-labelledby="run-', 1)
    assert commit(15)[:10] in changes
    assert "worse" in changes
    assert "better" in changes
    assert rest.count("<figure>") == rest.count("<details>") == page.count("<svg")
    assert "disturbed machine" in rest
    assert "emulated" in rest


def test_plots_have_names_and_ids_of_their_own(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    svgs = re.findall(r"<svg[^>]*>", page)
    assert svgs
    assert all('role="img"' in svg for svg in svgs)


def test_a_history_too_short_for_change_points_says_so():
    assert "No series has enough points yet" in render(group([entry()], Filter()))
    steady = days(np.full(20, 5.0))
    assert "nothing moved that chance does not explain" in render(group(steady, Filter()))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_complaints(page, tmp_path, width):
    path = tmp_path / "trend.html"
    path.write_text(page, encoding="utf-8")
    shot = tmp_path / "shot.png"
    result = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars",
            "--enable-logging=stderr", "--virtual-time-budget=1000", f"--window-size={width},2400",
            f"--screenshot={shot}", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "CONSOLE" not in result.stderr
    assert shot.stat().st_size > 20_000
