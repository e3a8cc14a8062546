"""What other programs read: JUnit, Markdown, badge, GitHub; hostile texts stay texts."""

import json
import os
from xml.etree import ElementTree

import pytest

from edgekd.gate import outputs
from edgekd.results import Check, GateReport

HOSTILE = "<b>|x|</b> `$(id)` ]]> \x00\n::error::pwned %0A"


def check(verdict, metric="size", runtime="onnxruntime", shown="3 MiB", label=None):
    return Check(
        metric=metric, target="local", runtime=runtime, value=3.0, interval=None, limit="≤ 2 MiB",
        verdict=verdict, text=f"{metric} on local: {shown}, budget ≤ 2 MiB", shown=shown, label=label,
    )  # fmt: skip


def report(*checks, code=1):
    return GateReport(verdict="fail", exit_code=code, checks=checks)


def test_junit_has_a_case_per_check():
    found = report(check("pass"), check("fail"), check("inconclusive"))
    suite = ElementTree.fromstring(outputs.junit(found, "digits"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["size ≤ 2 MiB"] * 3
    assert cases[0].get("classname") == "local.onnxruntime.f32"
    assert [[child.tag for child in case] for case in cases] == [[], ["failure"], ["skipped"]]


def test_junit_fails_undecided_checks_when_the_gate_does():
    suite = ElementTree.fromstring(outputs.junit(report(check("inconclusive"), code=4), "digits"))
    assert suite.get("failures") == "1"
    assert suite.find("testcase/failure").get("type") == "inconclusive"


def test_markdown_is_one_table_row_per_check():
    lines = outputs.markdown(report(check("pass"), check("fail")), "digits").splitlines()
    assert lines[0] == "### edgekd gate digits: ❌ fail"
    assert lines[4] == "| ✅ pass | size ≤ 2 MiB | local / onnxruntime / f32 | 3 MiB |"
    assert len(lines) == 6


def test_the_class_is_named_whatever_it_is_called():
    found = report(check("fail", "class_recall", label="bus: red"), check("pass", "class_recall"))
    suite = ElementTree.fromstring(outputs.junit(found, "digits"))
    names = [case.get("name") for case in suite.findall("testcase")]
    assert names == ["class_recall of 'bus: red' ≤ 2 MiB", "class_recall ≤ 2 MiB"]
    row = outputs.markdown(found, "digits").splitlines()[4]
    budget, place, measured = row.split(" | ")[1:]
    assert (budget, place) == (
        "class\\_recall of 'bus: red' ≤ 2 MiB", "local / onnxruntime / f32"
    )  # fmt: skip
    assert measured == "3 MiB |"


def test_nobody_is_notified_by_a_name():
    assert "@octocat" not in outputs.markdown(report(check("fail", label="@octocat")), "x")


def test_what_cannot_be_written_is_named_and_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/nosuch/summary.md")
    files = {"junit": tmp_path, "markdown": tmp_path / "m.md", "badge": tmp_path / "m.md/b"}
    errors = [str(e) for e in outputs.write(report(check("fail")), "digits", files)]
    assert errors == [
        f"--junit {tmp_path}: cannot be written: Is a directory",
        f"--badge {tmp_path}/m.md/b: cannot be written: Not a directory",
        "GITHUB_STEP_SUMMARY /nosuch/summary.md: cannot be written: No such file or directory",
    ]
    assert (tmp_path / "m.md").exists()


def test_an_earlier_verdict_is_forgotten_but_no_pipe_or_folder(tmp_path):
    old, pipe = tmp_path / "g.xml", tmp_path / "pipe"
    old.write_text("pass")
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("g.xml")
    outputs.forget({"junit": tmp_path / "link", "markdown": pipe, "badge": tmp_path, "x": None})
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    outputs.forget({"junit": tmp_path / "missing"})


def test_the_badge_is_a_shields_endpoint():
    badge = json.loads(outputs.badge(report(), "digits"))
    assert badge == {
        "schemaVersion": 1, "label": "edgekd digits", "message": "fail", "color": "red",
    }  # fmt: skip


def test_hostile_texts_stay_texts():
    found = report(check("fail", runtime=HOSTILE, shown=HOSTILE, label=HOSTILE))
    ElementTree.fromstring(outputs.junit(found, HOSTILE))
    table = outputs.markdown(found, HOSTILE).splitlines()
    assert len(table) == 5
    assert "<b>" not in table[4].replace("\\<", "")
    (line,) = outputs.github_annotations(found)
    assert line.startswith("::error title=edgekd gate::")
    assert "\n" not in line


def test_github_gets_annotations_and_a_summary(tmp_path, monkeypatch, capsys):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = {"junit": tmp_path / "a/j.xml", "markdown": tmp_path / "m.md", "badge": None}
    outputs.write(report(check("fail"), check("inconclusive")), "digits", files)
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in errors] == ["::error", "::warning"]
    assert summary.read_text().startswith("before\n### edgekd gate digits")
    assert (tmp_path / "a/j.xml").exists()
    assert (tmp_path / "m.md").exists()


def test_elsewhere_nothing_is_said(monkeypatch, capsys):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    outputs.write(report(check("fail")), "digits", {"junit": None})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["junit", "markdown"])
def test_no_checks_are_no_error(kind):
    assert getattr(outputs, kind)(GateReport(verdict="pass", exit_code=0, checks=()), "x")
