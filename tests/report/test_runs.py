"""`edgekd report --compare`: runs side by side, and why they may not be compared."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edgekd.cli.report import command
from edgekd.errors import UsageError
from edgekd.report.runs import side_by_side
from edgekd.report.runs_page import render
from edgekd.statistics import paired_difference
from tests.report.conftest import STUDENT, TEACHER, Builder, accuracy, answers, rewrite
from tests.report.test_html import HOSTILE, Page


@pytest.fixture
def runs(tmp_path):
    """Two finished runs: `b` was configured with other targets, and is twice as fast."""
    first, second = Builder(tmp_path / "a"), Builder(tmp_path / "b")
    runs = [first.build(), second.build()]

    def faster(value):
        for m in value["measurements"]:
            for name in ("p50", "p50_interval"):
                given = m["latency"][name]
                m["latency"][name] = (
                    [v / 2 for v in given] if isinstance(given, list) else given / 2
                )

    rewrite(runs[1], "profile", "profile/profile.json", faster)
    return runs


def compared(runs):
    return side_by_side([run.path for run in runs])


def line(found, title, label):
    (group,) = [g for g in found.groups if g.place.title == title]
    return next(x for x in group.lines if x.label == label)


def test_every_file_has_its_figures_beside_those_of_the_other_run(runs):
    found = compared(runs)
    assert [side.name for side in found.sides] == ["a", "b"]
    assert [g.place.title for g in found.groups] == [
        f"{role} in {runtime} on local"
        for runtime in ("onnxruntime", "openvino") for role in ("teacher", "student")
    ]  # fmt: skip
    latency = line(found, "student in openvino on local", "latency p50")
    a, b = (run.profile.measurements[3] for run in runs)
    assert [v.number for v in latency.values] == [a.latency.p50, b.latency.p50]
    assert latency.values[0].interval == a.latency.p50_interval
    assert latency.changes[0] is None
    assert latency.changes[1].text == "2× faster"
    assert latency.changes[1].interval_text.startswith("1.9")
    assert line(found, "student in openvino on local", "file size").values[0].number == 51_208


def test_accuracy_is_compared_on_the_same_samples(runs):
    worse = [5, *(c for c, _ in STUDENT.per_class[1:])]
    totals = [total for _, total in STUDENT.per_class]
    path = runs[1].path / "verify/logits.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["onnxruntime/student"] = answers(arrays["labels"], accuracy(worse, totals))
    np.savez_compressed(path, **arrays)
    found = compared(runs)
    change = line(found, "student in onnxruntime on local", "test accuracy").changes[1]
    assert change.number == pytest.approx(-49 / 540)
    low, high = paired_difference(0, 49, 540)
    assert change.interval_text == f"−{-low * 100:.2f} to −{-high * 100:.2f}"
    assert change.better is False
    same = line(found, "student in openvino on local", "test accuracy").changes[1]
    assert (same.text, same.better) == ("the same", None)


def test_other_test_samples_are_a_warning_and_no_difference(runs):
    path = runs[1].path / "verify/logits.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["indices"] = arrays["indices"] + 1
    np.savez_compressed(path, **arrays)
    found = compared(runs)
    assert any("tested on different samples" in warning for warning in found.warnings)
    assert line(found, "student in openvino on local", "test accuracy").changes[1] is None


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("threads", 2, "threads: 1 in a, 2 in b"),
        ("precision", "bf16", "precision: f32 in a, bf16 in b"),
        ("runtime_version", "9.9", "runtime version: 1.31.0 in a, 9.9 in b"),
        ("provenance", "emulated", "provenance: measured in a, emulated in b"),
    ],
)
def test_what_was_measured_otherwise_is_named(runs, key, value, named):
    def change(profile):
        profile["measurements"][0][key] = value

    rewrite(runs[1], "profile", "profile/profile.json", change)
    warnings = [w for w in compared(runs).warnings if named in w]
    assert len(warnings) == 1
    assert "teacher in onnxruntime on local" in warnings[0]


def test_another_machine_is_named_once_for_all_files(runs):
    for run, cpu in zip(runs, ("i7", "Xeon"), strict=True):

        def move(profile, cpu=cpu):
            profile["environment"]["local"]["cpu_model"] = cpu

        rewrite(run, "profile", "profile/profile.json", move)
    (warning,) = compared(runs).warnings
    assert warning == "machine: i7 in a, Xeon in b (teacher in onnxruntime on local and 3 more)"


def test_runs_of_the_same_kind_have_no_warning(runs):
    assert compared(runs).warnings == ()


def test_configuration_differences_are_listed_key_by_key(runs):
    manifest = runs[1].manifest
    config = json.loads(json.dumps(manifest.config))
    config["distill"]["methods"] = [{"kd": {"temperature": 2.0}}]
    config["profile"]["targets"] = ["local", "pi"]
    runs[1].write_manifest(manifest.model_copy(update={"config": config}))
    settings = {s.key: s.values for s in compared(runs).settings}
    assert settings == {
        "distill.methods": ('"auto"', "–"),
        "distill.methods.0.kd.temperature": ("–", "2.0"),
        "profile.targets.1": ("–", '"pi"'),
    }


def test_an_unfinished_run_is_compared_as_far_as_it_goes(tmp_path, runs):
    half = Builder(tmp_path / "half").build("teacher", "distill", "export")
    found = compared([runs[0], half])
    assert "half is not finished: verify, profile, gate" in found.warnings
    assert line(found, "student in openvino on local", "latency p50").values[1] is None
    assert "–" in Page(render(found)).text


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path):
    runs = [Builder(tmp_path / name / "digits").build("teacher") for name in ("x", "y")]
    assert [side.name for side in compared(runs).sides] == ["x/digits", "y/digits"]


def test_the_page_is_whole_and_names_are_text(tmp_path, runs):
    hostile = Builder(tmp_path / "hostile")
    hostile.targets = hostile.classes = (HOSTILE, *hostile.classes[1:])
    hostile.targets = [HOSTILE]
    hostile.command = HOSTILE
    source = render(compared([runs[0], hostile.build()]))
    parsed = Page(source)
    assert parsed.errors == parsed.open == []
    assert "<script" not in source
    assert HOSTILE in parsed.text
    identifiers = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


class TestCommand:
    def invoke(self, *arguments):
        return CliRunner().invoke(command, list(map(str, arguments)))

    def test_it_prints_writes_and_says_where(self, tmp_path, runs):
        page = tmp_path / "compare.html"
        result = self.invoke("--compare", runs[0].path, runs[1].path, "-o", page)
        assert result.exit_code == 0, result.output
        assert "2× faster" in result.output
        assert f"page: {page}" in result.output
        assert "student in openvino on local" in page.read_text(encoding="utf-8")

    def test_names_do_not_control_the_terminal(self, tmp_path, runs):
        hostile = Builder(tmp_path / "[bold]x\x1b[31m")
        hostile.targets = ["\x1b]0;t\x07\u202e"]
        result = self.invoke("--compare", runs[0].path, hostile.build().path)
        assert result.exit_code == 0, result.output
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output)
        assert "[bold]x" in result.output

    def test_json_has_every_figure(self, runs):
        found = json.loads(self.invoke("--compare", runs[0].path, runs[1].path, "--json").stdout)
        assert [run["name"] for run in found["runs"]] == ["a", "b"]
        first = found["groups"][0]
        assert first["place"]["runtime"] == "onnxruntime"
        accuracy_line = first["lines"][0]
        assert accuracy_line["values"][0]["interval"] == list(TEACHER.interval)

    def test_the_runs_are_left_as_they_are(self, runs):
        before = {p: p.stat().st_mtime_ns for run in runs for p in run.path.rglob("*")}
        assert self.invoke("--compare", runs[0].path, runs[1].path).exit_code == 0
        assert before == {p: p.stat().st_mtime_ns for run in runs for p in run.path.rglob("*")}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--compare", "A"], "compares 2 to 8 runs, not 1"),
            (["--compare"], "compares 2 to 8 runs, not 0"),
            (["--compare", "A", "A"], "is given twice"),
            (["--compare", "A", "nowhere"], "not a run folder"),
            (["--compare", "A", "B", "--force"], "--force does not go with --compare"),
            (["--compare", "A", "B", "--set", "seed=1"], "--set does not go with --compare"),
            (["A", "B"], "several runs without --compare"),
            (["A", "-o", "x.html"], "-o without --compare"),
        ],
    )
    def test_bad_usage_is_one_clear_error(self, runs, arguments, said):
        names = {"A": runs[0].path, "B": runs[1].path}
        result = self.invoke(*(names.get(a, a) for a in arguments))
        assert isinstance(result.exception, UsageError)
        assert said in str(result.exception)

    def test_a_page_that_cannot_be_written_is_one_clear_error(self, tmp_path, runs):
        (tmp_path / "file").write_text("")
        result = self.invoke(
            "--compare", runs[0].path, runs[1].path, "-o", tmp_path / "file/x.html"
        )
        assert isinstance(result.exception, UsageError), result.output
