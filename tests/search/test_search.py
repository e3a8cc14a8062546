import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekd import api
from edgekd.config.load import load_config
from edgekd.errors import StageError, UsageError
from edgekd.search import cost, front, space
from edgekd.search.engines import local
from edgekd.search.records import SearchReport
from edgekd.teachers.kinds.torch import TorchTeacher
from tests.search.conftest import PLAIN, TINY, Lab

ROOT = Path(__file__).parents[2]


def test_the_winner_meets_the_budgets_and_is_the_most_accurate_of_the_last_rung(searched):
    report = searched.report
    last = [p for p in report.points if p.epochs == report.rungs[-1]]
    assert report.found
    assert report.best_point.accuracy.value == max(p.accuracy.value for p in last if p.meets)
    assert report.rungs == (2, 4)
    assert [len(trial.rungs) for trial in report.trials].count(2) == 1
    assert SearchReport.read(searched.out / "search.json") == report


def test_what_is_chosen_looks_at_no_test_sample(searched):
    """Accuracies are counts over the validation split, which has another size than the test split."""
    from edgekd.data.resolve import load

    data = load(searched.config.data, 0, searched.base)
    assert len(data.validation) != len(data.test)
    assert {p.accuracy.total for p in searched.report.points} == {len(data.validation)}


def test_best_yaml_is_a_configuration_whose_run_ends_the_training_to_the_very_same_weights(
    searched, tmp_path
):
    """`edgekd compress` goes on from the trial's checkpoint; a run elsewhere trains it all."""
    config = load_config(searched.best)
    assert not config.student.auto
    assert "search" not in yaml.safe_load(searched.best.read_text())
    (checkpoint,) = (searched.base / "runs/tiny").glob(".partial/distill-*/checkpoint.pt")
    going_on = api.distill(searched.best, out=searched.base / "runs/tiny")
    assert not checkpoint.exists()
    whole = api.distill(searched.best, out=tmp_path / "whole")
    assert going_on.manifest.stages["teacher"].reused_from is not None
    weights = [(run.path / "student/model.safetensors").read_bytes() for run in (going_on, whole)]
    assert weights[0] == weights[1]
    best = searched.report.best_point
    assert going_on.training("student").validation.value == best.accuracy.value


def test_the_teacher_is_asked_once_for_all_trials(searched):
    """One store, whose every row any trial may have filled."""
    stores = list((searched.base / "runs/.knowledge").glob("*/store.json"))
    assert len(stores) == 1


def test_the_same_search_again_trains_and_measures_nothing(searched, monkeypatch):
    def never(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(local._Worker, "ask", never)
    monkeypatch.setattr(cost, "profile", never)
    monkeypatch.setattr(space, "prune", never)
    monkeypatch.setattr(TorchTeacher, "make", never)
    again = Lab(searched.base)
    assert again.search() == searched.report


def test_the_page_is_one_inert_file(searched):
    text = (searched.out / "search.html").read_text()
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert text.count("<svg") == 3
    assert searched.report.best_point.candidate in text


@pytest.mark.slow
def test_int8_is_a_choice_of_its_own_where_quantize_is_asked(tmp_path):
    pytest.importorskip("nncf")
    lab = Lab(
        tmp_path,
        quantize={"recipe": "default"},
        search={**TINY["search"], "trials": 1, "rungs": 1, "epochs": 1, "prune": []},
        gate={"budgets": [{"metric": "size", "max": "1 MB", "variant": "int8"}]},
    )
    report = lab.search()
    assert {p.variant for p in report.points} == {"int8"}
    assert load_config(lab.best).quantize is not None


@pytest.mark.slow
def test_a_pruned_student_goes_through_the_whole_line_and_a_second_process_opens_it(tmp_path):
    convolutions = {"model": "zoo:resnet8", "args": {"width": 0.5}}
    lab = Lab(
        tmp_path,
        teacher={**convolutions, "train": {**TINY["teacher"]["train"], "epochs": 2}},
        search={**TINY["search"], "candidates": 1, "trials": 1, "rungs": 1, "epochs": 1},
    )
    report = lab.search()
    assert report.best_point.family == "pruned"
    run = api.verify(lab.best, out=tmp_path / "runs/tiny", overrides=["distill.epochs=1"])
    assert run.card("student").model == "pruned"
    assert all(file.passed for file in run.verify.files)
    # The weights that training started from are not needed any more.
    for path in (lab.out / "students").glob("*.safetensors"):
        path.unlink()
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgekd.models import role\n"
        "from edgekd.pipeline.run import Run\n"
        "module = role.load(Run(Path(sys.argv[1])), 'student', Path(sys.argv[2]))\n"
        "assert 'torch_pruning' not in sys.modules\n"
        "print(sum(p.numel() for p in module.parameters()))\n"
    )
    said = subprocess.check_output(
        [sys.executable, "-c", code, str(run.path), str(tmp_path)], text=True, cwd=ROOT
    )
    assert int(said) == report.best_point.parameters == run.card("student").parameters


def test_compress_with_student_auto_searches_and_goes_on_with_the_winner(searched):
    config = {**TINY, "name": "tiny"}
    path = searched.base / "auto.yaml"
    path.write_text(yaml.safe_dump(config))
    run = api.distill(path, out=searched.base / "runs/tiny")
    assert run.manifest.config["student"]["model"] == run.card("student").model != "auto"
    assert not (run.path / ".partial").exists()


# -- stopped and gone on --------------------------------------------------------------------


def command(lab, *more):
    lab.base.joinpath("tiny.yaml").write_text(yaml.safe_dump(lab.value))
    return [
        sys.executable, "-m", "edgekd", "search", "tiny.yaml", "--out", str(lab.out),
        "--json", *more,
    ]  # fmt: skip


def start(lab, *more):
    return subprocess.Popen(
        command(lab, *more), cwd=lab.base, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(found, seconds=90.0):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


def workers(process):
    """The processes that the search started to train in."""
    every = subprocess.check_output(["ps", "-eo", "pid,ppid,args"], text=True).splitlines()[1:]
    rows = [line.split(None, 2) for line in every]
    return [int(pid) for pid, ppid, args in rows
            if int(ppid) == process.pid and "edgekd.search.worker" in args]  # fmt: skip


def alive(pid):
    """Whether it runs; one that has ended may still be listed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


LONG = {"epochs": 120, "checkpoint_every": 0.1}


def long_search(path):
    """One trial that takes seconds, and so can be stopped in the middle."""
    return Lab(
        path,
        distill={**TINY["distill"], **LONG},
        search={**TINY["search"], "candidates": 1, "trials": 1, "rungs": 1, "prune": []},
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The same, never stopped."""
    lab = long_search(tmp_path_factory.mktemp("straight"))
    lab.report = lab.search()
    return lab


def test_the_command_prints_what_it_found_and_exits_with_the_verdict(searched):
    lab = Lab(searched.base)
    process = start(lab)
    printed, told = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert SearchReport.model_validate(json.loads(printed)).points == searched.report.points
    hopeless = start(lab, "--set", "gate.budgets=[{metric: accuracy, min: 100 %}]")
    printed, told = hopeless.communicate(timeout=100)
    assert hopeless.returncode == 1, told
    assert json.loads(printed)["winner"] is not None


def test_the_shell_completes_the_command_and_its_options():
    from click.shell_completion import BashComplete

    from edgekd.cli import app

    complete = BashComplete(app, {}, "edgekd", "_EDGEKD_COMPLETE")
    assert [c.value for c in complete.get_completions([], "sea")] == ["search"]
    assert "--rungs" in [c.value for c in complete.get_completions(["search"], "--r")]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_search_that_is_stopped_goes_on_to_the_same_weights(straight, tmp_path, how):
    lab = long_search(tmp_path)
    process = start(lab)
    (checkpoint,) = until(lambda: list(lab.out.glob("trials/*/checkpoint.pt")))
    (worker,) = workers(process)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again" in told
    until(lambda: not alive(worker), 30)
    assert not list(lab.out.glob("trials/*/epoch-*.json"))
    size = checkpoint.stat().st_size
    assert size > 0

    again = start(lab)
    printed, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    # It says so only when it did not begin anew.
    found = json.loads(printed)
    (point,) = straight.report.points
    assert found["points"][0]["accuracy"] == point.accuracy.model_dump(mode="json")
    same = [best_weights(place.out) for place in (lab, straight)]
    assert all(np.array_equal(same[0][k], same[1][k]) for k in same[0])


def best_weights(out):
    import torch

    (path,) = out.glob("trials/*/checkpoint.pt")
    found = torch.load(path, weights_only=True)["state"]["best_weights"]
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_the_trial_goes_on_from_its_checkpoint(
    straight, tmp_path
):
    lab = long_search(tmp_path)
    process = start(lab)
    until(lambda: list(lab.out.glob("trials/*/checkpoint.pt")))
    (worker,) = workers(process)
    os.kill(worker, signal.SIGKILL)
    (second,) = until(lambda: [pid for pid in workers(process) if pid != worker])
    assert second != worker
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    same = [best_weights(place.out) for place in (lab, straight)]
    assert all(np.array_equal(same[0][k], same[1][k]) for k in same[0])


# -- what cannot be searched ----------------------------------------------------------------


def budget(**about):
    return {"budgets": [{"metric": "latency_p50", **about}]}


def test_budgets_that_no_candidate_can_meet_name_the_closest_and_by_how_much(searched, tmp_path):
    from edgekd.search.search import summary

    lab = Lab(searched.base, gate=budget(max="1 ns", runtime="onnxruntime"))
    lab.out = tmp_path / "impossible"
    report = lab.search()
    assert not report.found
    assert report.closest.candidate in {c.name for c in report.candidates}
    assert re.search(r"none of 2 candidates can meet .* times too much", summary(report))
    assert json.loads((lab.out / "search.json").read_text())["points"] == []
    assert "so that none was trained" in (lab.out / "search.html").read_text()
    found = next(c for c in report.candidates if c.name == report.closest.candidate)
    assert load_config(lab.best).student.args == found.args
    with pytest.raises(UsageError, match="none of 2 candidates can meet") as caught:
        api.compress(lab.config, out=searched.base / "runs/never")
    assert "allow more" in caught.value.fix


def test_what_was_changed_by_hand_is_not_overwritten(searched, tmp_path):
    lab = Lab(searched.base)
    made = lab.best.read_text()
    try:
        lab.search()
        lab.best.write_text(made.replace("epochs: 4", "epochs: 3"))
        with pytest.raises(UsageError, match="or it was changed since"):
            lab.search()
        lab.best.write_text("student: zoo:dscnn\n")
        with pytest.raises(UsageError, match="has not written it"):
            lab.search()
        assert lab.best.read_text() == "student: zoo:dscnn\n"
    finally:
        lab.best.write_text(made)
    lab.best = tmp_path / "elsewhere.yaml"
    with pytest.raises(UsageError, match="in another folder than CONFIG"):
        lab.search()
    lab.best = lab.base
    with pytest.raises(UsageError, match="is a folder"):
        lab.search()


def test_damaged_files_that_spare_work_are_made_again(searched, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(searched.base, place)
    lab = Lab(place)
    (rung, *_) = lab.out.glob("trials/*/epoch-*.json")
    (cost, *_) = lab.out.parent.glob(".costs/*.json")
    kept = rung.read_text()
    for path in (rung, cost):
        path.write_text("{")
    report = lab.search()
    assert report.found
    assert json.loads(rung.read_text())["accuracy"] == json.loads(kept)["accuracy"]
    assert json.loads(cost.read_text())


def test_trials_cannot_be_longer_than_the_training(searched):
    lab = Lab(searched.base, search={**TINY["search"], "epochs": 9})
    with pytest.raises(UsageError, match="is 9, and a whole training has 4"):
        lab.search()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"gate": budget(max="1 s", target="pi-9")}, "unknown target 'pi-9'"),
        ({"gate": {"budgets": [{"metric": "user.x", "max": 1}]}}, "nothing gives user.x"),
        ({"gate": {"budgets": [{"metric": "size_vs_baseline", "max": "1 x"}]}}, "needs a baseline"),
        ({"quantize": {"recipe": "statc"}}, "unknown calibration recipe 'statc'"),
        (
            {"gate": {"budgets": [{"metric": "class_recall", "label": "ten", "min": "50 %"}]}},
            "no class is called 'ten'",
        ),
        ({"gate": budget(max="1 s", variant="int8")}, "there are to be none"),
    ],
)
def test_what_cannot_work_is_told_before_the_teacher_is_trained(tmp_path, sections, said):
    lab = Lab(tmp_path, **sections)
    with pytest.raises(UsageError, match=said):
        lab.search()
    assert not (lab.out / "teacher").exists()


def test_an_accuracy_out_of_reach_ends_with_the_closest_and_what_stands_in_the_way(searched):
    from edgekd.search.search import summary

    gate = {"budgets": [*TINY["gate"]["budgets"], {"metric": "accuracy", "min": "100 %"}]}
    lab = Lab(searched.base, gate=gate)
    report = lab.search()
    assert not report.found
    assert "accuracy on validation split is" in summary(report)
    assert "points too little" in summary(report)
    assert load_config(lab.best).student == load_config(searched.best).student


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (budget(max="1 s", target="pi-9"), "unknown target 'pi-9'"),
        (budget(max="1 s", target="local", runtime="onnxruntim"), "did you mean 'onnxruntime'"),
        (
            {"budgets": [{"metric": "energy", "max": "1 J", "runtime": "onnxruntime"}]},
            "nothing tells energy",
        ),
    ],
)  # fmt: skip
def test_a_budget_on_what_there_is_not(searched, gate, said):
    lab = Lab(searched.base, gate=gate)
    if "energy" in said and _tells_energy():
        pytest.skip("this machine tells its energy")
    with pytest.raises(UsageError, match=said):
        lab.search()


def _tells_energy():
    from edgekd.profile.device import energy

    return bool(list(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj"))) and bool(energy)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"gate": {}}, "student: auto needs a budget"),
        ({"teacher": {"model": "records:answers.csv"}}, "only answers; name a student"),
        ({"teacher": {"model": "onnx:big.onnx"}}, "only answers; name a student"),
        (
            {"student": {"model": "auto", "args": {"width": 3}}},
            "args and start are of a network that is named",
        ),
        ({"distill": {"scheme": "byot"}}, "searched with scheme offline"),
    ],
)
def test_what_auto_cannot_go_with_is_refused_when_the_configuration_is_read(sections, said):
    with pytest.raises(UsageError, match=said):
        api.resolve({**TINY, **sections})


def test_without_torch_pruning_one_error_says_what_to_do(searched, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "torch_pruning" else find(name, *a),
    )
    with pytest.raises(UsageError, match="Torch-Pruning, which is not installed") as caught:
        Lab(searched.base).search()
    assert "pip install 'edgekd[prune]'" in caught.value.fix
    assert "search.prune=[]" in caught.value.fix


ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.inner, self.fc = nn.Linear(64, 16), nn.Linear(16, classes)

    def forward(self, x):
        # A constant where the layer's size belongs.
        return self.fc(self.inner(x.flatten(1)) + torch.ones(16))

def net(num_classes):
    return Odd(num_classes)
"""


@pytest.mark.slow
def test_a_teacher_that_cannot_be_traced_is_told_and_the_families_are_searched(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    train = {**TINY["teacher"]["train"], "epochs": 1}
    lab = Lab(
        tmp_path,
        teacher={"model": "odd.py:net", "train": train},
        search={**TINY["search"], "candidates": 1, "trials": 1, "rungs": 1, "epochs": 1},
    )
    report = lab.search()
    assert any("cannot be pruned" in note for note in report.notes)
    assert report.found


MEAN = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, num_classes))
"""


def test_a_teacher_with_nothing_smaller_is_one_error(tmp_path):
    (tmp_path / "odd.py").write_text(MEAN)
    train = {**TINY["teacher"]["train"], "epochs": 1}
    lab = Lab(tmp_path, teacher={"model": "odd.py:net", "train": train})
    with pytest.raises(UsageError, match="no network smaller than the teacher") as caught:
        lab.search()
    assert "name a student" in caught.value.fix


def test_a_trial_that_fails_is_left_out_and_when_all_do_the_first_reason_is_told(searched):
    wild = {**TINY["distill"], "learning_rate": 1e30, "compute": PLAIN}
    lab = Lab(searched.base, distill=wild)
    with pytest.raises(StageError, match=r"became|not finite"):
        lab.search()


def test_an_unknown_engine_is_named(searched):
    lab = Lab(searched.base, search={**TINY["search"], "engine": "rey://here"})
    with pytest.raises(UsageError, match="unknown engine 'rey'"):
        lab.search()


# -- drawing --------------------------------------------------------------------------------


def test_nothing_on_the_front_is_beaten_and_everything_else_is(searched):
    points = searched.report.points
    for metric in front.AXES:
        on = [p for p in points if metric in p.front]
        for p in points:
            beaten = any(
                q.accuracy.value >= p.accuracy.value and q.costs[metric] <= p.costs[metric] and q != p
                and (q.accuracy.value, q.costs[metric]) != (p.accuracy.value, p.costs[metric])
                for q in points
            )  # fmt: skip
            assert beaten == (p not in on) or p.costs[metric] in [q.costs[metric] for q in on]


def test_the_front_is_drawn_with_its_ends_and_the_limit(searched):
    text = front.drawn(searched.report.points, 1.0)
    assert "●" in text
    assert "┊" in text
    best = max(p.accuracy.value for p in searched.report.points)
    assert f"{best:.2%}" in text
    assert front.drawn([]) == ""
