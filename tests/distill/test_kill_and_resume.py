"""A distillation that is killed again and again ends with the weights of one that never was."""

import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.config.schema import Augment, Compute, Data, KnowledgeStorage, Training
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill.knowledge_store import StoredKnowledge
from edgekd.distill.method import Knowledge
from edgekd.distill.methods.fitnet import FitNet
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.distill.trainer import train
from edgekd.progress import Silent

EPOCHS, STEPS = 4, 5  # of each epoch


def network(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * width, 10),
    )  # fmt: skip


class KillAt(Silent):
    """SIGKILL, which nothing can catch, once this many steps were done."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, amount=1, **figures):
        self.left -= bool(amount)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def distill(folder, digits, kill_after=0, seconds=0.0):
    """Logits and a feature from the store, mixed views in bf16, a regressor, dropout, momentum.

    Killed after as many steps, or as many seconds: anywhere, in a write as well.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    student, teacher = network(8, 0), network(12, 1).eval()
    objective = Objective(0.1, (KD(), FitNet(taps=[("4", "4")], weight=1.0)))
    objective.prepare(student, teacher, digits.tensor(digits.train[:4]), seed=0)
    views = Views(digits, Augment(crop=1, mixup=0.2, views=3), 0)
    tapped = Tapped(teacher, objective.teacher_taps).__enter__()

    def ask(inputs, indices, view):
        with torch.no_grad():
            return Knowledge(*tapped(inputs))

    stored = StoredKnowledge(
        ask, folder / "store", {"teacher": 1}, KnowledgeStorage(), views=views.count,
        samples=len(digits.labels), rows=digits.train,
        example=ask(digits.tensor(digits.train[:2]), None, 0),
    )  # fmt: skip
    assert set(stored.stores) == {"logits", "4"}
    config = Training(
        epochs=EPOCHS, learning_rate=0.05, threads=1, checkpoint_every=0.0,
        compute=Compute(precision="bf16", channels_last=True),
    )  # fmt: skip
    history = train(
        student, digits, views, objective, config, seed=0, teacher=stored, name="student",
        checkpoint=folder / "checkpoint.pt", progress=KillAt(kill_after),
    )  # fmt: skip
    weights = {k: v.float().numpy() for k, v in student.state_dict().items()}
    np.savez(folder / "student.npz", **weights)
    (folder / "losses.txt").write_text(repr([epoch.losses for epoch in history.epochs]))


@pytest.mark.slow
def test_killed_at_more_than_twenty_random_points_it_ends_with_the_same_weights(tmp_path):
    digits = load(Data(limit=350), 0, tmp_path)
    assert -(-len(digits.train) // 64) == STEPS
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    distill(whole, digits)
    fork, chance, kills, finished = multiprocessing.get_context("fork"), random.Random(7), 0, False
    while not finished:
        # What was done before the step that it is killed at is kept: 1 gets no further.
        steps, seconds = chance.choice([1, 2, 2, 3]), chance.choice([0, chance.uniform(0.0, 0.2)])
        task = fork.Process(target=distill, args=(killed, digits, steps, seconds))
        task.start()
        task.join()
        finished = task.exitcode == 0
        assert finished or task.exitcode in (-signal.SIGKILL, -signal.SIGALRM)
        kills += not finished
        assert kills < 200
    assert kills >= 20
    with np.load(whole / "student.npz") as a, np.load(killed / "student.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
    assert (whole / "losses.txt").read_text() == (killed / "losses.txt").read_text()
