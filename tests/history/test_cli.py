"""`edgekd history` as people type it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edgekd.cli import main
from edgekd.history import store
from tests.history.entries import HOSTILE, commit, days, entry


def edgekd(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["history", *map(str, arguments)])
    return caught.value.code or 0


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a history: the latency rose by 6 % at the 25th commit, the size did not."""
    values = 0.002 * np.exp(0.01 * np.random.default_rng(1).normal(size=36))
    values[24:] *= 1.06
    entries = [
        *days(values),
        *days(np.full(36, 3.0e6), metric="size"),
        *days(np.full(36, 0.9), metric="class_recall", label=HOSTILE, target=None),
        entry(35, metric="accuracy", value=0.981, target=None, branch="other"),
    ]
    store.append(tmp_path / store.DEFAULT, entries)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_the_newest_values_with_their_change_and_trend(project, capsys):
    assert edgekd() == 0
    out = capsys.readouterr().out
    assert f"at {commit(35)[:10]}, 2026-02-05 12:00 UTC" in out
    (latency,) = (line for line in out.splitlines() if "latency_p50" in line)
    assert "2.1" in latency
    assert latency.rstrip()[-1] in "▁▂▃▄▅▆▇█"
    assert "2.86 MiB" in out
    assert "script" not in out


@pytest.mark.parametrize(
    ("options", "metrics"),
    [
        (["--metric", "size"], {"size"}),
        (["--target", "local"], {"latency_p50", "size"}),
        (["--branch", "other"], {"accuracy"}),
        (["--runtime", "openvino"], set()),
        (["--variant", "int8"], set()),
        (["--run", "digits", "--label", HOSTILE, "--metric", "class_recall"], {"class_recall"}),
        (["--since", "2026-06-01"], set()),
    ],
)
def test_filters(project, capsys, options, metrics):
    assert edgekd("list", "--json", *options) == 0
    assert {s["metric"] for s in json.loads(capsys.readouterr().out)} == metrics


def test_json_has_every_value(project, capsys):
    assert edgekd("--json", "--metric", "latency_p50", "--limit", 5) == 0
    (series,) = json.loads(capsys.readouterr().out)
    assert series["points"] == len(series["values"]) == 5
    assert series["latest"]["value"] == series["values"][-1]
    assert series["previous"] == series["values"][-2]


def test_changes_name_the_commit(project, capsys):
    assert edgekd("changes") == 0
    out = capsys.readouterr().out
    assert "latency_p50  digits: local/onnxruntime/f32" in out
    assert f"at {commit(24)[:10]} on main" in out
    assert f"the last before it: {commit(23)[:10]}" in out
    assert "worse" in out
    assert "1 change point in 3 series; 1 have fewer than 14 points yet" in out
    assert edgekd("changes", "--json") == 0
    (change,) = json.loads(capsys.readouterr().out)
    assert (change["commit"], change["previous_commit"]) == (commit(24), commit(23))
    assert change["interval"][0] < 1.06 < change["interval"][1]
    assert change["better"] is False


def test_export_and_import_carry_it_over(project, capsys):
    assert edgekd("export", "all.jsonl") == 0
    assert "wrote all.jsonl: 109 figures" in capsys.readouterr().out
    assert edgekd("import", "all.jsonl", "--file", "other.sqlite") == 0
    assert "109 figures read, 109 of them added" in capsys.readouterr().out
    assert edgekd("import", "all.jsonl", "--file", "other.sqlite") == 0
    assert "0 of them added" in capsys.readouterr().out
    assert store.read(project / "below/other.sqlite") == store.read(project / store.DEFAULT)


def test_pipes(project):
    edgekd_ = [sys.executable, "-m", "edgekd", "history"]
    told = subprocess.run([*edgekd_, "export", "-"], capture_output=True, check=True).stdout
    done = subprocess.run(
        [*edgekd_, "import", "-", "--file", "piped.sqlite"],
        input=told, capture_output=True, check=True,
    )  # fmt: skip
    assert b"109 of them added" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "nowhere.sqlite"], "no history yet"),
        (["--file", "."], "is not a file"),
        (["--file", "x" * 300], "too long"),
        (["--since", "yesterday"], "should be a date"),
        (["--since", "99999999999d"], "should be a date"),
        (["--limit", "0"], "--limit"),
        (["import", "nowhere.jsonl"], "cannot be read"),
        (["import", "bad.jsonl"], "bad.jsonl:1"),
        (["plot", "--metric", "nothing"], "no figures of this kind"),
        (["plot", "-o", "/proc/x/t.html"], "/proc/x"),
        (["export", "/proc/x/all.jsonl"], "/proc/x"),
        (["chnages"], "changes"),
    ],
)
def test_mistakes_are_one_clear_error(project, capsys, arguments, message):
    (project / "below/bad.jsonl").write_text("{}\n")
    assert edgekd(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
