"""The pages in a real Chromium: they draw, they fit, they ask for nothing and run nothing."""

import re
from itertools import pairwise

import numpy as np
import pytest

from edgekd.report.html import render
from edgekd.report.runs import side_by_side
from edgekd.report.runs_page import render as render_compared
from tests.chromium import chromium
from tests.report.conftest import Builder
from tests.report.test_html import HOSTILE
from tests.report.test_operators import operators_report

MOST_BYTES = 400_000
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages of a run in which everything that can have a name has a hostile one."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = Builder(folder / "hostile")
    hostile.classes = (HOSTILE, "<script>alert(2)</script>", *hostile.classes[2:])
    hostile.model = {"teacher": HOSTILE, "student": HOSTILE}
    hostile.targets = [HOSTILE, "local"]
    hostile.command = HOSTILE
    runs = [Builder(folder / "plain").build(), hostile.build()]
    for run in runs:
        operators_report().write(run.path / "profile/operators.json")
        if run is runs[0]:
            with_int8(run)
        (folder / f"{run.path.name}.html").write_text(render(run), encoding="utf-8")
    compared = render_compared(side_by_side([run.path for run in runs]))
    (folder / "compare.html").write_text(compared, encoding="utf-8")
    return folder


def with_int8(run):
    """The run as if the student had INT8 files too."""

    def copies(records, **changes):
        students = [r for r in records if getattr(r, "role", "student") == "student"]
        return (*records, *(r.model_copy(update={"variant": "int8", **changes}) for r in students))

    profile, verify, operators = run.profile, run.verify, run.operators
    for part, names in (
        (profile, ("measurements", "comparisons")),
        (verify, ("files",)),
        (operators, ("profiles", "costs")),
    ):
        changed = part.model_copy(update={name: copies(getattr(part, name)) for name in names})
        file = {"measurements": "profile/profile", "files": "verify/parity"}.get(
            names[0], "profile/operators"
        )
        changed.write(run.path / f"{file}.json")
    with np.load(run.path / "verify/logits.npz") as archive:
        logits = dict(archive)
    int8 = {
        f"{name}-int8": np.roll(a, 1, axis=1)
        for name, a in logits.items()
        if name.endswith("/student")
    }
    np.savez_compressed(run.path / "verify/logits.npz", **logits, **int8)


PAGES = ("plain.html", "hostile.html", "compare.html")


@pytest.fixture(scope="module")
def browser():
    with chromium("--hide-scrollbars") as browser:
        browser.events, listen = [], browser._listen

        def remember(method, params):
            browser.events.append((method, params))
            listen(method, params)

        browser._listen = remember
        browser.ask("Network.enable")
        yield browser


class View:
    """A page that was opened, with everything that it asked for and complained of."""

    def __init__(self, browser, path, width=1280, scheme="light", media="screen"):
        self.browser = browser
        browser.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=844, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.ask("Emulation.setEmulatedMedia", media=media, features=features)
        browser.open("about:blank")
        browser.events.clear()
        browser.complaints.clear()
        browser.open(path.as_uri())
        browser.wait_for(f"location.href == '{path.as_uri()}' && document.readyState == 'complete'")
        # What a script or an image would still do.
        browser.evaluate("new Promise(done => setTimeout(done, 100))")

    def ask(self, expression):
        return self.browser.evaluate(expression)

    @property
    def requests(self):
        urls = [
            p["request"]["url"] for m, p in self.browser.events if m == "Network.requestWillBeSent"
        ]
        return [url for url in urls[1:] if not url.startswith("data:")]  # the first is the page

    @property
    def troubles(self):
        failed = [p["errorText"] for m, p in self.browser.events if m == "Network.loadingFailed"]
        dialogs = [
            p["message"] for m, p in self.browser.events if m == "Page.javascriptDialogOpening"
        ]
        return [*self.browser.complaints, *failed, *dialogs]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_draws_fits_and_asks_for_nothing(browser, folder, name, width):
    view = View(browser, folder / name, width)
    assert (view.troubles, view.requests) == ([], [])
    boxes = view.ask(
        "[...document.querySelectorAll('svg, img')].map(e => e.getBoundingClientRect())"
        ".map(b => [b.width, b.height, b.left, b.right])"
    )
    assert len(boxes) >= 2 if name == "compare.html" else len(boxes) > 15
    for across, down, left, right in boxes:
        assert across > 40
        assert down > 15
        assert left >= 0
        assert right <= width
    assert view.ask("document.documentElement.scrollWidth") <= width
    assert view.ask("[...document.images].every(i => i.naturalWidth > 1)")
    drawn = "[...document.querySelectorAll('svg')].every(s => s.getBBox().width > 0)"
    assert view.ask(drawn)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_wider_than_a_phone_is_out_of_reach(browser, folder, name):
    """What is wider than the page is in a region that scrolls and that the keyboard reaches."""
    view = View(browser, folder / name, 390)
    view.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert view.ask("document.documentElement.scrollWidth") <= 390
    lost = """[...document.querySelectorAll('main *')].filter(e =>
        e.getBoundingClientRect().right > 391 && !e.closest('[tabindex="0"], svg')
    ).map(e => e.outerHTML.slice(0, 80))"""
    assert view.ask(lost) == []
    unreachable = """[...document.querySelectorAll('*')].filter(e =>
        ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth
        && e.tabIndex < 0).length"""
    assert view.ask(unreachable) == 0


@pytest.mark.parametrize("name", ["hostile.html", "compare.html"])
def test_a_class_called_script_does_nothing(browser, folder, name):
    view = View(browser, folder / name)
    assert view.ask("document.scripts.length") == 0
    assert view.troubles == []
    assert "<script>alert(1)</script>" in view.ask("document.body.textContent")


def test_the_tree_for_screen_readers_names_every_plot_table_and_picture(browser, folder):
    view = View(browser, folder / "plain.html")
    view.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    nodes = view.browser.ask("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes if not node["ignored"]
    ]  # fmt: skip
    pictures = [name for role, name in found if role in ("image", "img", "graphics-document")]
    regions = [name for role, name in found if role == "region"]
    assert len(pictures) > 15
    assert all(pictures)
    assert all(regions)
    # A table under every plot.
    assert view.ask("[...document.querySelectorAll('figure')].every(f => f.querySelector('table'))")
    levels = view.ask("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


CONTRAST = """(() => {
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const colour = rgb(getComputedStyle(e).backgroundColor);
            if (colour.length == 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const e of document.querySelectorAll('main *, header *, footer *')) {
        const own = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
        if (!own || e.closest('svg') || !e.checkVisibility()) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(e.outerHTML.slice(0, 90));
    }
    return poor;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["plain.html", "compare.html"])
def test_text_has_the_contrast_that_wcag_asks_for(browser, folder, name, scheme):
    view = View(browser, folder / name, scheme=scheme)
    assert view.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(245, 246, 248)" if scheme == "light" else "rgb(16, 19, 23)"
    )
    assert view.ask(CONTRAST) == []


def test_print_shows_the_tables_that_the_screen_folds(browser, folder):
    closed = "[...document.querySelectorAll('details:not([open]) table')]"
    shown = f"{closed}.every(t => t.checkVisibility() && t.clientHeight > 10)"
    view = View(browser, folder / "plain.html")
    assert view.ask(f"{closed}.length") > 5
    assert not view.ask(shown)
    assert View(browser, folder / "plain.html", media="print").ask(shown)


def test_the_page_is_light(folder):
    for name in PAGES:
        source = (folder / name).read_text(encoding="utf-8")
        assert len(re.sub(r"data:image/png;base64,[^\"]+", "", source).encode()) <= MOST_BYTES


@pytest.mark.parametrize(
    "trouble",
    [
        "<script>alert(1)</script>",
        "<img src='http://127.0.0.1:9/x.png'>",
        "<img src=x onerror='alert(1)'>",
        "<link rel=stylesheet href='x.css'>",
    ],
)
def test_what_would_be_wrong_is_seen(browser, folder, tmp_path, trouble):
    """The same page with something in it that must not be: the policy stops it, and it is noticed."""
    source = (folder / "plain.html").read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(source.replace("</main>", f"{trouble}</main>"), encoding="utf-8")
    assert View(browser, broken).troubles


def test_what_runs_and_asks_is_seen_without_the_policy(browser, tmp_path):
    page = tmp_path / "free.html"
    page.write_text("<script>fetch('http://127.0.0.1:61234/'); undefined_name()</script>")
    view = View(browser, page)
    assert "Uncaught" in str(view.troubles)
    assert view.requests == ["http://127.0.0.1:61234/"]
