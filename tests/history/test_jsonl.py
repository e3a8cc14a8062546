"""JSON lines: the same history elsewhere, and lines that edgekd did not write."""

import io
import json

import pytest

from edgekd.errors import UsageError
from edgekd.history import jsonl, store
from tests.history.entries import HOSTILE, entry

WRITTEN = [
    entry(0, limit="≤ 3 ms", verdict="pass"),
    entry(1, metric="user.top2", value=-1.5, interval=(-2, -1), target=None, device=None),
    entry(2, metric="class_recall", label=HOSTILE, commit=None, provenance="emulated", noisy=True),
]


def exported(entries=WRITTEN):
    stream = io.StringIO()
    jsonl.dump(entries, stream)
    return stream.getvalue()


def load(path, text):
    return jsonl.load(path, io.BytesIO(text.encode()), "lines.jsonl")


def line(**changes):
    value = json.loads(exported(WRITTEN[:1]))
    return json.dumps({k: v for k, v in (value | changes).items() if v != "DROP"}) + "\n"


def test_an_export_is_the_same_history_elsewhere_and_importing_it_again_adds_nothing(tmp_path):
    path = tmp_path / "history.sqlite"
    assert exported().count("\n") == 3
    assert load(path, exported()) == (3, 3)
    assert store.read(path) == WRITTEN
    assert load(path, exported() + "\n" + exported(WRITTEN[:1])) == (4, 0)
    assert store.read(path) == WRITTEN


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "should be a JSON object"),
        ("[" * 5000, "not a JSON object"),
        ('{"schema": 1, "schema": 1}', "twice"),
        ("x" * 20000, "too long"),
        (line(schema=2), "upgrade edgekd"),
        (line(schema=True), "this edgekd reads 1"),
        (line(schema="DROP"), "schema"),
        (line(value="DROP"), "value: is missing"),
        (line(more=1), "more: Extra inputs"),
        (line(value="2"), "value: Input should be a valid number"),
        (line(value=float("nan")), "value"),
        (line(interval=[2, 1]), "lower end is above"),
        (line(time="2026-01-01T00:00:00"), "time"),
        (line(time="0001-01-01T00:00:00+14:00"), "time"),
        (line(commit="HEAD"), "commit"),
        (line(threads=0), "threads"),
        (line(provenance="guessed"), "provenance"),
        (line(run="\x1b[2J"), "run"),
        (line(run="a\u202eb"), "run"),
        (line(label="x" * 201), "label"),
        (line(verdict="maybe"), "verdict"),
        (line(metric="accuracy", value=123), "value: 123 can never be accuracy"),
        (line(metric="r2", value=1.2, interval=None), "value: 1.2 can never be r2"),
        (line(value=-0.002, interval=None), "value: -0.002 can never be latency_p50"),
        (line(interval=[-0.001, 0.003]), "interval: -0.001 can never be"),
        (line(metric="acuracy"), "no metric 'acuracy'; did you mean 'accuracy'"),
        (line(metric="user.a b"), "no metric 'user.a b'"),
        (line(value=0.004), r"value: 0\.004 of latency_p50 at .* the same measurement gave 0\.002"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_added(tmp_path, wrong, message):
    path = tmp_path / "history.sqlite"
    with pytest.raises(UsageError, match=message) as caught:
        load(path, exported() + wrong.rstrip("\n") + "\n")
    assert caught.value.where == "lines.jsonl:4"
    assert not path.exists()


def test_another_value_of_what_the_history_has_is_refused(tmp_path):
    path = tmp_path / "history.sqlite"
    load(path, exported())
    with pytest.raises(UsageError, match="same measurement gave"):
        load(path, line(time="2026-02-01T00:00:00Z") + line(value=0.004))
    assert store.read(path) == WRITTEN
    # Of another file, commit or time it is another measurement.
    for changes in ({"artifact": "b" * 64}, {"commit": "1" * 40}, {"time": "2026-02-01T00:00:00Z"}):
        assert load(path, line(value=0.004, **changes)) == (1, 1)


def test_a_difference_may_be_negative_and_its_interval_wide(tmp_path):
    drop = line(metric="accuracy_drop", value=-0.01, interval=[-1.1, 1.1])
    assert load(tmp_path / "history.sqlite", drop) == (1, 1)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(UsageError, match="not a JSON object"):
        jsonl.load(tmp_path / "h.sqlite", io.BytesIO(b'{"run": "\xff"}\n'), "f")
