"""`edgekd knowledge` on the store of real runs."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import edgekd
from edgekd.cli import app
from edgekd.distill.knowledge_files import prune, stores, verify
from edgekd.distill.knowledge_store import Dense, KnowledgeStore
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


def cut(store):
    shard = store / "000-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])


def change(store, key, value):
    path = store / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "000-00000.bin: this shard of a knowledge store has another size"),
        (lambda store: (store / "store.json").write_text("{"), "store.json: not valid JSON"),
        (lambda store: (store / "store.json").write_text("[]"), "made for something else"),
        (lambda store: (store / "store.json").unlink(), "store.json: "),
        (lambda store: change(store, "views", "two"), "made for something else"),
        (lambda store: change(store, "identity", {"place": "a"}), "made for something else"),
    ],
)
def test_a_damaged_store_is_named_beside_the_others_and_pruned(runs, tmp_path, damage, told):
    folder = tmp_path / "my runs"
    shutil.copytree(runs, folder)
    (damaged,) = stores(folder)
    identity = {**damaged.about["identity"], "place": "another"}
    sound = KnowledgeStore(
        damaged.folder.parent, identity, views=1, samples=10, codec=Dense((3,))
    ).folder
    damage(damaged.folder)
    listed = {about["name"]: about for about in json.loads(invoke("info", folder, "--json").output)}
    assert told in listed[damaged.folder.name]["damage"]
    assert listed[sound.name]["damage"] is None
    result = invoke("info", folder)
    assert result.exit_code == 0
    lines = dict(line.split("  ", 1) for line in result.output.splitlines())
    assert f"DAMAGED ({damaged.folder}" in lines[damaged.folder.name[:12]]
    assert f"`edgekd knowledge prune '{folder}'` deletes it" in result.output
    assert "10 samples, 0% known" in lines[sound.name[:12]]
    result = invoke("verify", folder / "a")
    assert result.exit_code == 1
    assert "DAMAGED" in result.output
    assert "another: 0 rows, the same" in result.output
    assert f"`edgekd knowledge prune '{folder / 'a'}'` deletes it" in result.output
    freed, _ = prune(folder, everything=False)
    assert freed > 1000
    assert [stored.folder for stored in stores(folder)] == [sound]


def test_a_run_without_knowledge_is_refused(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (stored,) = stores(tmp_path / "runs")
    shutil.rmtree(stored.folder)
    with pytest.raises(UsageError, match="no knowledge of this run's teacher"):
        verify(tmp_path / "runs" / "a", 10, 0)
