"""The terminal's table and report.json."""

import io
import json

import pytest
from rich.console import Console

from edgekd.report.comparison import Change, Value, figure_text, interval_text, points_text
from edgekd.report.data import document
from edgekd.report.summary import rows, table
from tests.report.conftest import STAGES, rewrite


def printed(run, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table(run))
    return console.file.getvalue()


def test_the_table_has_teacher_student_and_ratio(finished):
    lines = {" ".join(line.split()) for line in printed(finished).splitlines()}
    assert "parameters 1,085,786 4,922 221× smaller" in lines
    assert any(line.startswith("latency p50 412 µs 38.") and "× faster" in line for line in lines)
    assert any(line.startswith("speedup, onnxruntime on local ≥ 3× 8.1× pass") for line in lines)


def test_no_line_is_wider_than_the_terminal(finished):
    for width in (60, 80, 120):
        assert max(map(len, printed(finished, width).splitlines())) <= width


def test_names_are_text_not_markup(builder):
    builder.targets = ["[bold]phone[/bold]"]
    assert "[bold]phone[/bold]" in printed(builder.build())


@pytest.mark.parametrize("done", range(1, 8))
def test_a_partial_run_shows_what_is_done(builder, done):
    run = builder.build(*STAGES[:done])
    text = " ".join(printed(run).split())
    assert "parameters" in text
    if done < 7:
        assert f"not done yet: {', '.join(STAGES[done:])}" in text


def test_a_worse_student_is_called_worse(builder):
    run = builder.build()

    def slower(value):
        value["comparisons"][0]["speedup"] = 0.5
        value["comparisons"][0]["speedup_interval"] = [0.4, 0.6]

    rewrite(run, "profile", "profile/profile.json", slower)
    changes = [row.change for row in rows(run) if row.label == "latency p50"]
    assert (changes[0].text, changes[0].interval_text, changes[0].better) == (
        "2× slower",
        "1.67–2.5×",
        False,
    )


def test_a_measurement_that_is_not_to_be_relied_on_says_so(builder):
    run = builder.build()

    def doubt(value):
        value["measurements"][0]["conclusive"] = False
        value["measurements"][1]["latency"]["steady"] = False

    rewrite(run, "profile", "profile/profile.json", doubt)
    note = next(row.note for row in rows(run) if row.label == "latency p50")
    assert note == "inconclusive: teacher; not steady: student"


def test_failures_are_loud(builder):
    run = builder.build()

    def fail(value):
        value["verdict"], value["exit_code"] = "fail", 1
        value["checks"][2]["verdict"] = "fail"

    rewrite(run, "gate", "gate/gate.json", fail)
    rewrite(run, "verify", "verify/parity.json", lambda v: v["files"][0].update(passed=False))
    text = printed(run)
    assert "FAIL" in text
    assert "1 of 4 files FAIL" in " ".join(text.split())


def test_the_document_has_every_artifact_with_its_hash(finished):
    report = json.loads(json.dumps(document(finished), allow_nan=False))
    assert report["schema"] == 1
    assert report["missing"] == []
    for section, path in (("gate", "gate/gate.json"), ("profile", "profile/profile.json")):
        stage = finished.manifest.stages[section]
        source = report["results"][section]["source"]
        assert source == {"path": path, "sha256": stage.artifacts[path].sha256}
    on_disk = json.loads((finished.path / "profile/profile.json").read_text())
    assert {k: v for k, v in report["results"]["profile"].items() if k != "source"} == on_disk


def test_the_document_of_a_partial_run_says_what_is_missing(builder):
    report = document(builder.build("teacher", "distill"))
    assert report["missing"] == ["export", "quantize", "verify", "profile", "gate"]
    assert report["results"]["export"] is None
    assert report["results"]["student"]["metrics"]["test"]["total"] == 540


def test_figures_as_people_write_them():
    assert figure_text(1234567, "number") == "1,234,567"
    assert interval_text((29.8e-6, 30.4e-6), "time") == "29.8–30.4 µs"
    assert points_text(-0.0074) == "−0.74 points"
    assert Value(0.0123, "time", (0.0121, 0.0125)).interval_text == "12.1–12.5"
    assert Change(1, "ratio", "the same").better is None
