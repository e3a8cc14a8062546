"""`edgekd knowledge` on the store of real runs."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import edgekd
from edgekd.cli import app
from edgekd.distill.knowledge_files import prune, stores, verify
from edgekd.errors import UsageError

CONFIG = {
    "data": {"source": "digits", "limit": 200, "augment": {"crop": 1, "views": 2}},
    "teacher": {"model": "zoo:mlp", "args": {"hidden": [24]}, "train": {"epochs": 2}},
    "student": {"model": "zoo:mlp", "args": {"hidden": [8]}},
    "distill": {"epochs": 1, "doctor": False},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "runs"
    edgekd.distill(CONFIG, out=folder / "a")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, ["knowledge", *map(str, arguments)], catch_exceptions=False)


def test_another_student_and_method_share_what_is_known(runs):
    (before,) = stores(runs)
    shard = before.folder / "000-00000.bin"
    content = shard.read_bytes()
    edgekd.distill(CONFIG, out=runs / "b", overrides=["distill.methods=[dkd]"])
    edgekd.distill(
        CONFIG, out=runs / "b", overrides=["student.args.hidden=[10]", "distill.batch_size=50"]
    )
    (after,) = stores(runs)
    assert after.folder == before.folder
    assert shard.read_bytes() == content  # nothing new was asked
    assert after.runs == ("a", "b")


def test_info_tells_how_much_is_known_and_whose_teacher_it_is(runs):
    (about,) = json.loads(invoke("info", runs, "--json").output)
    assert about["place"] == "logits"
    assert 0 < about["filled"] < 0.5  # one of two views, and the training split only
    assert "a" in about["runs"]
    assert about["bytes"] > 2 * 2 * 200 * 12
    assert "logits" in invoke("info", runs / "a").output


def test_verify_finds_the_same_answers_and_notices_another_teacher(runs, tmp_path):
    result = invoke("verify", runs / "a", "--samples", 100)
    assert result.exit_code == 0
    assert "the same" in result.output
    shutil.copytree(runs, tmp_path / "runs")
    (stored,) = stores(tmp_path / "runs")
    store = stored.open()
    view = store.read(np.flatnonzero(store.known(np.arange(store.samples), 0)), 0)
    rows = np.flatnonzero(store.known(np.arange(store.samples), 0))
    for path in stored.folder.glob("*.bin"):
        path.unlink()
    stored.open().keep(rows, 0, view.flip(1))
    result = invoke("verify", tmp_path / "runs" / "a")
    assert result.exit_code == 1
    assert "NOT THE SAME" in result.output


def test_prune_deletes_what_belongs_to_no_run_and_leaves_what_is_in_use(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    assert prune(tmp_path / "runs", everything=False) == (0, 0)
    for run in (tmp_path / "runs").glob("*/run.json"):
        shutil.rmtree(run.parent)
    (stored,) = stores(tmp_path / "runs")
    in_use = stored.open()
    assert prune(tmp_path / "runs", everything=False) == (0, 1)
    in_use.close()
    freed, used = prune(tmp_path / "runs", everything=False)
    assert freed > 1000
    assert used == 0
    assert stores(tmp_path / "runs") == []
    assert "no knowledge" in invoke("info", tmp_path / "runs").output
    with pytest.raises(UsageError, match="no such folder"):
        stores(tmp_path / "elsewhere")


def test_a_run_without_knowledge_and_a_store_that_was_renamed_are_refused(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (stored,) = stores(tmp_path / "runs")
    renamed = stored.folder.rename(stored.folder.with_name("0" * 32))
    with pytest.raises(UsageError, match="made for something else"):
        stores(tmp_path / "runs")
    shutil.rmtree(renamed)
    with pytest.raises(UsageError, match="no knowledge of this run's teacher"):
        verify(tmp_path / "runs" / "a", 10, 0)
