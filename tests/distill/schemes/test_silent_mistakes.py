"""Ways in which distillation goes wrong without a word: each would fail here (DESIGN §5).

No T², a mean over classes and detached logits are looked for in tests/distill/methods, other views and
regressors that are not trained in test_trainer.py and test_taps.py, shuffled answers in
test_knowledge_store.py.
"""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd.config.schema import Augment, Training
from edgekd.data.views import Views
from edgekd.distill.method import Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.trainer import train
from edgekd.progress import Silent
from tests.distill.schemes.conftest import PLAIN, StopAfter, same


def test_the_teacher_answers_in_evaluation_mode_and_stays_as_it_was(lab, tmp_path):
    teacher = {"model": "zoo:mlp", "args": {"hidden": [48], "dropout": 0.5}}
    settings = {"threads": 1, "learning_rate": 0.05, "compute": PLAIN, "epochs": 4}
    run = lab(teacher={**teacher, "train": settings}).distill()
    network = run.network("teacher").eval()
    before = load_file(run.path / "teacher/model.safetensors")

    def answer(inputs, indices, view):
        with torch.no_grad():
            return Knowledge(network(inputs))

    assert same(run.by_hand(tmp_path, answer), run.network())
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_student_learns_in_training_mode_and_answers_in_evaluation_mode(lab, tmp_path):
    dataset = lab().dataset
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))
    modes = []

    def look(module, inputs):
        modes.append((torch.is_grad_enabled(), module.training, module[2].training))

    model.register_forward_pre_hook(look)
    train(
        model, dataset, Views(dataset, Augment(), 0), Objective(0.1, (KD(),)),
        Training(epochs=2, threads=1, compute=PLAIN), seed=0, checkpoint=tmp_path / "c.pt",
        progress=Silent(), name="student",
        teacher=lambda inputs, indices, view: Knowledge(torch.zeros(len(inputs), 10)),
    )  # fmt: skip
    assert {mode[1:] for mode in modes if mode[0]} == {(True, True)}
    assert {mode[1:] for mode in modes if not mode[0]} == {(False, False)}
    assert model[1].num_batches_tracked > 0
    assert not model.training


def test_no_weights_of_the_teacher_are_in_the_students_checkpoint(lab):
    networks = {
        "student": {"model": "zoo:dscnn", "args": {"width": 4, "depth": 2}},
        "teacher": {"model": "zoo:dscnn", "args": {"width": 8, "depth": 2}},
    }
    run = lab(distill={"methods": ["kd", "fitnet", "crd"], "checkpoint_every": 0.0}, **networks)
    with pytest.raises(RuntimeError, match="power cut"):
        run.distill(StopAfter(run.config.teacher.train.epochs * 5 + 3))
    (path,) = run.path.rglob("checkpoint.pt")
    assert "distill" in str(path)
    saved = torch.load(path, weights_only=True)
    teacher = load_file(run.path / "teacher/model.safetensors")
    for name, value in saved["model"].items():
        assert name.startswith(("student.", "losses."))
        for other in teacher.values():
            if value.shape == other.shape and value.numel() > 8 and value.is_floating_point():
                assert not torch.equal(value, other), name
    run.distill()
    plain = lab("plain", distill={"methods": []}, **networks).distill()
    files = [load_file(r.path / "student/model.safetensors") for r in (run, plain)]
    assert {k: v.shape for k, v in files[0].items()} == {k: v.shape for k, v in files[1].items()}


def test_the_test_split_has_no_say_in_what_is_kept(lab, tmp_path):
    dataset = lab().dataset
    labels = dataset.labels.copy()
    labels[dataset.test] = np.random.default_rng(0).permutation(labels[dataset.test])
    inputs = dataset.inputs.copy()
    inputs[dataset.test] = 0
    kept = []
    for k, data in enumerate((dataset, dataclasses.replace(dataset, labels=labels, inputs=inputs))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        history = train(
            model, data, Views(data, Augment(), 0), Objective(),
            Training(epochs=6, threads=1, compute=PLAIN, learning_rate=0.3, schedule="constant"),
            seed=0, checkpoint=tmp_path / f"{k}.pt", progress=Silent(), name="student",
        )  # fmt: skip
        kept.append((model, history.best))
    assert same(kept[0][0], kept[1][0])
    assert kept[0][1] == kept[1][1]
