"""`edgekd gate` and `edgekd compress` as a CI job uses them: what is kept, what is told, what is left."""

import json
import shutil

import pytest

from edgekd.cli import main
from edgekd.pipeline.run import Run
from tests.pipeline.test_line import line

BROKEN = "budgets:\n- {metric: size, max: 1 GB}\n- {metric: size, max: 1 B, runtime: onnxruntime}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return line(tmp_path_factory.mktemp("command") / "tiny")[0].path


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A private copy of a finished run, and no CI around it."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    shutil.copytree(finished, tmp_path / "runs/tiny")
    return Run(tmp_path / "runs/tiny")


def edgekd(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code or 0


def test_the_options_of_one_gate_weaken_no_other(run, tmp_path, capsys):
    kept = run.manifest.config
    (tmp_path / "b.yaml").write_text("on_inconclusive: pass\n" + BROKEN)
    options = (
        "--budget", tmp_path / "b.yaml", "--allow", "machine", "--allow", "threads",
        "--set", "gate.max_seconds=1",
    )  # fmt: skip
    assert edgekd("gate", run.path, "-q", "--json", *options) == 1
    said = json.loads(capsys.readouterr().out)
    assert [c["verdict"] for c in said["checks"]] == ["pass", "pass", "fail"]
    held_to = run.gate.held_to
    assert [b["max"] for b in held_to["budgets"]] == ["1 GB", "1 B"]
    assert held_to["allow"] == ["machine", "threads"]
    assert (held_to["on_inconclusive"], held_to["max_seconds"]) == ("pass", 1)
    assert run.manifest.config == kept

    assert edgekd("gate", run.path, "-q") == 0
    assert run.gate.held_to == kept["gate"]
    # What is not of the gate is kept as ever, and the gate's is not smuggled in with it.
    options = ("--set", "license=MIT", "--set", "gate.on_inconclusive=warn")
    assert edgekd("gate", run.path, "-q", *options) == 0
    assert run.manifest.config == kept or run.manifest.config == kept | {"license": "MIT"}
    assert run.manifest.config["gate"] == kept["gate"]


def test_the_budgets_of_the_configuration_file_are_kept(run, tmp_path):
    config = {**run.manifest.config, "gate": {"budgets": [{"metric": "size", "max": "2 GB"}]}}
    (tmp_path / "compress.yaml").write_text(json.dumps(config))
    options = ("--out", run.path, "-q", "--set", "gate.on_inconclusive=warn")
    assert edgekd("gate", tmp_path / "compress.yaml", *options) == 0
    assert [b["max"] for b in run.manifest.config["gate"]["budgets"]] == ["2 GB"]
    assert run.manifest.config["gate"]["on_inconclusive"] == "fail"


def test_a_budget_that_nothing_answers_names_its_line(run, tmp_path, capsys):
    path = tmp_path / "b.yaml"
    path.write_text(BROKEN.replace("runtime: onnxruntime", "runtime: tensorrt"))
    assert edgekd("gate", run.path, "-q", "--budget", path) == 2
    wrong = f"{path}:3: budgets.1: nothing is measured with runtime 'tensorrt'"
    assert wrong in capsys.readouterr().err
    path.write_text("budgets:\n- {metric: latency_vs_baseline, max: 1.1 x}\n")
    assert edgekd("gate", run.path, "-q", "--budget", path) == 2
    errors = capsys.readouterr().err
    assert "latency_vs_baseline needs a baseline" in errors
    assert "--baseline" in errors
    path.write_text("budgets:\n- {metric: energy, max: 1 mJ}\n")
    assert edgekd("gate", run.path, "-q", "--budget", path) == 2
    errors = capsys.readouterr().err
    assert "energy was measured nowhere" in errors
    assert "local/onnxruntime" not in errors


def test_an_output_that_cannot_be_written_hides_no_verdict(run, tmp_path, capsys, monkeypatch):
    assert edgekd("gate", run.path, "-q", "--json", "--junit", tmp_path) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"] == "pass"
    assert said.err == f"error: --junit {tmp_path}: cannot be written: Is a directory\n"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/nosuch/sum.md")
    (tmp_path / "b.yaml").write_text(BROKEN)
    assert edgekd("gate", run.path, "-q", "--budget", tmp_path / "b.yaml") == 1
    said = capsys.readouterr()
    assert "fail" in said.out.lower()
    assert "error: GITHUB_STEP_SUMMARY /nosuch/sum.md: cannot be written" in said.err


def test_a_gate_that_could_not_be_held_leaves_no_earlier_verdict(run, tmp_path):
    paths = [tmp_path / name for name in ("g.xml", "g.md", "g.json")]
    outputs = [
        x for pair in zip(("--junit", "--markdown", "--badge"), paths, strict=True) for x in pair
    ]
    assert edgekd("gate", run.path, "-q", *outputs) == 0
    assert all(path.exists() for path in paths)
    assert edgekd("gate", run.path, "-q", *outputs, "--baseline", tmp_path / "nowhere") == 2
    assert not any(path.exists() for path in paths)


def test_compress_tells_github_too(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    limit = "gate.budgets=[{metric: size, max: 1 B}]"
    options = ("-q", "--json", "--set", limit, "--junit", tmp_path / "g.xml")
    assert edgekd("compress", run.path, *options) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["schema"] == 1
    assert said.err.count("::error title=edgekd gate::size") == 2
    assert "### edgekd gate tiny" in (tmp_path / "summary.md").read_text()
    assert "<failure" in (tmp_path / "g.xml").read_text()


def test_a_history_that_cannot_be_written_is_said_under_quiet_too(run, tmp_path, capsys):
    (tmp_path / "h").mkdir()
    options = ("-q", "--json", "--set", f"history={tmp_path}/h", "--force")
    assert edgekd("gate", run.path, *options) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"] == "pass"
    assert said.err.startswith("warning: the history was not written: ")
