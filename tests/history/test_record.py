"""What gates add to the history, with real runs: every figure once; and never a broken gate."""

import shutil
import sqlite3
import subprocess

import pytest

from edgekd import api
from edgekd.history import store
from edgekd.pipeline.line import run_line
from edgekd.pipeline.run import Run
from edgekd.progress import Silent
from tests.pipeline.test_line import TINY, merged

METRICS = """
def share(logits, labels):
    return {"right": (logits.argmax(1) == labels).mean(), "nan": float("nan")}
"""


class Told:
    """A progress that keeps what was said."""

    def __init__(self):
        self.lines, self.warnings = [], []

    def say(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.warnings.append(text)


def gate(project, *, force=None, progress=None, **changes):
    config, _ = api.resolve(merged(TINY | {"history": store.DEFAULT}, changes))
    shown = Silent()
    if progress is not None:
        shown.say, shown.warn = progress.say, progress.warn
    return run_line(
        config, base=project, out=project / "runs/tiny", until="gate", force=force, progress=shown
    )


def git(project, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(project), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project under git after its first gate."""
    project = tmp_path_factory.mktemp("history") / "project"
    project.mkdir()
    (project / "mine.py").write_text(METRICS)
    git(project, "init", "-q", "-b", "trunk")
    git(project, "add", "mine.py")
    git(project, "commit", "-q", "-m", "first")
    _, done = gate(project, gate={"metrics": "mine.py:share"})
    assert "gate" in done
    return project


@pytest.fixture
def project(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "project", symlinks=True)


def history(project):
    return store.read(project / store.DEFAULT)


def test_every_figure_is_there_with_its_label_provenance_verdict_and_commit(project):
    found = history(project)
    run = Run(project / "runs/tiny")
    assert {e.commit for e in found} == {git(project, "rev-parse", "HEAD")}
    assert {(e.run, e.branch, e.dirty) for e in found} == {("tiny", "trunk", False)}
    assert {e.provenance for e in found} == {"measured"}
    of_one = [e for e in found if e.runtime == "openvino"]
    assert sorted(e.label for e in of_one if e.label) == [str(digit) for digit in range(10)]
    measured = {e.metric for e in of_one if e.target == "local"}
    assert {"latency_p50", "latency_p99", "throughput", "memory", "size", "speedup"} <= measured
    of_users = {e.metric for e in of_one if e.metric.startswith("user.")}
    assert of_users == {"user.right", "user.right_drop"}
    (student,) = (
        m for m in run.profile.measurements if (m.role, m.runtime) == ("student", "openvino")
    )
    (latency,) = (e for e in of_one if e.metric == "latency_p50")
    assert (latency.value, latency.interval) == (student.latency.p50, student.latency.p50_interval)
    assert (latency.threads, latency.batch_size, latency.device) == (1, 1, latency.device)
    assert latency.device
    (accuracy,) = (e for e in of_one if e.metric == "accuracy")
    assert (accuracy.limit, accuracy.verdict) == ("≥ 30.00 %", "pass")
    assert git(project, "status", "--porcelain", ".edgekd") == ""


def test_a_gate_that_is_up_to_date_or_done_again_adds_nothing(project):
    before = history(project)
    settings = {"gate": {"metrics": "mine.py:share"}}
    assert gate(project, **settings)[1] == []
    git(project, "commit", "-q", "--allow-empty", "-m", "second")
    (project / "mine.py").write_text(METRICS + "# changed")
    gate(project, force="gate", **settings)
    assert history(project) == before


def test_other_budgets_add_a_verdict_and_no_point(project):
    before = history(project)
    budgets = [{"metric": "class_recall", "label": "3", "min": "100 %"}]
    gate(project, gate={"metrics": "mine.py:share", "budgets": budgets})
    after = history(project)
    assert len(after) == len(before)
    limits = {(e.metric, e.label) for e in after if e.limit == "≥ 100.00 %"}
    assert limits == {("class_recall", "3")}


def test_what_is_measured_again_adds_points(project):
    # An interval that nothing meets: one that is a point, at the tick of the clock, would decide.
    profile = {"interval": 1e-9}
    gate(project, profile=profile)
    before = history(project)
    run = Run(project / "runs/tiny")
    (student,) = (
        m for m in run.profile.measurements if (m.role, m.runtime) == ("student", "openvino")
    )
    budget = {
        "metric": "latency_p50", "max": f"{student.latency.p50 * 1e9:.0f} ns",
        "runtime": "openvino",
    }  # fmt: skip
    gate(project, profile=profile, gate={"budgets": [budget], "max_seconds": 1})
    latencies = [
        e for e in history(project) if (e.metric, e.runtime) == ("latency_p50", "openvino")
    ]
    (check,) = run.gate.checks
    assert [e.value for e in latencies[-2:]] == [student.latency.p50, check.value]
    assert latencies[-1].time > latencies[-2].time
    assert len(history(project)) > len(before)


def test_figures_against_a_baseline_are_kept_too(project):
    shutil.copytree(project / "runs/tiny", project / "runs/released")
    gate(project, gate={"baseline": "runs/released", "rerun_baseline": False})
    found = {e.metric for e in history(project)}
    assert {
        "latency_vs_baseline", "accuracy_vs_baseline", "memory_vs_baseline", "size_vs_baseline",
    } <= found  # fmt: skip


def _locked(path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    return holder


def _newer(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


def _garbage(path):
    path.write_bytes(b"\0garbage" * 999)


def _folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_locked, "is locked"),
        (_newer, "newer edgekd"),
        (_garbage, "damaged"),
        (_folder, "is not a file"),
    ],
)
def test_a_history_that_cannot_be_written_is_one_warning(project, monkeypatch, spoil, message):
    monkeypatch.setattr(store, "_PATIENCE", 0.05)
    held, told = spoil(project / store.DEFAULT), Told()
    run, done = gate(project, force="gate", progress=told)
    if held is not None:
        held.close()
    assert done == ["gate"]
    assert run.exit_code == 0
    (warning,) = told.warnings
    assert message in warning
    assert "history.sqlite" in warning


@pytest.mark.parametrize(
    "place", ["/proc/x/h.sqlite", "x" * 300, "mine.py/h.sqlite", "~nobody0/x", "a\0b"]
)
def test_a_place_where_nothing_can_be_written_is_one_warning(project, place):
    told = Told()
    run, _ = gate(project, force="gate", progress=told, history=place)
    assert run.exit_code == 0
    assert len(told.warnings) == 1


def test_null_keeps_none(project):
    shutil.rmtree(project / ".edgekd")
    told = Told()
    gate(project, force="gate", progress=told, history=None)
    assert not (project / ".edgekd").exists()
    assert told.warnings == []


def test_a_run_from_another_machine_goes_to_the_history_here(project, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    config, _ = api.resolve(TINY | {"history": store.DEFAULT})
    gone = tmp_path / "gone"
    run_line(
        config, base=gone, out=project / "runs/tiny", until="gate", force="gate",
        progress=Silent(),
    )  # fmt: skip
    assert not gone.exists()
    assert store.read(here / store.DEFAULT)
