"""Schemes on digits, with networks and trainings as small and short as they can be."""

from pathlib import Path

import pytest
import torch

from edgekd import api
from edgekd.config.load import validate
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill.objective import Objective
from edgekd.distill.trainer import train
from edgekd.models import resolve, role
from edgekd.models.weights import load_weights
from edgekd.pipeline.line import run_line
from edgekd.progress import Silent
from edgekd.results import ModelCard, SchemeReport

PLAIN = {"device": "cpu", "precision": "f32", "channels_last": False, "compile": False}
TINY = {
    "data": {"limit": 300},
    "teacher": {
        "model": "zoo:mlp",
        "args": {"hidden": [48]},
        "train": {"epochs": 6, "threads": 1, "learning_rate": 0.05, "compute": PLAIN},
    },
    "student": {"model": "zoo:mlp", "args": {"hidden": [12]}},
    "distill": {
        "epochs": 3,
        "threads": 1,
        "learning_rate": 0.05,
        "compute": PLAIN,
        "knowledge": {"precision": "f32", "teacher": "f32"},
    },
    "history": None,
}


class StopAfter(Silent):
    """Raises in the middle of a training, as a crash between two steps would."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, amount=1, **figures):
        if amount:
            self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


class Lab:
    """One run folder, and ways to look at what a scheme left in it."""

    def __init__(self, path: Path, **sections):
        value = {key: {**TINY.get(key, {}), **part} for key, part in sections.items()}
        self.config, self.base = api.resolve({**TINY, **value})
        self.path = path

    def distill(self, progress=None):
        run_line(
            self.config, base=self.base, out=self.path, until="distill",
            progress=progress or Silent(), command="test",
        )  # fmt: skip
        return self

    @property
    def dataset(self):
        return load(self.config.data, self.config.data.seed, self.base)

    @property
    def report(self):
        return SchemeReport.read(self.path / "student/scheme.json")

    def network(self, folder="student"):
        """A kept network, from its card and weights."""
        card = ModelCard.read(self.path / folder / "model.json")
        module = resolve.build(
            card.model, card.args, input_shape=card.input.shape, classes=len(card.classes),
            seed=card.seed, base=self.base,
        )  # fmt: skip
        load_weights(module, self.path / folder / "model.safetensors")
        return module.eval()

    def by_hand(self, tmp_path, teacher=None, *, seed=0, model=None, objective=None):
        """The student trained by the plain loop from `teacher`: (inputs, indices, view) → Knowledge."""
        config, dataset = self.config, self.dataset
        module = role.build(
            model or config.student, "student", dataset, seed=config.seed + seed, base=self.base
        )
        train(
            module, dataset, Views(dataset, config.data.augment, config.data.seed),
            objective or Objective(config.distill.labels_weight, config.distill.methods.entries),
            config.distill, seed=config.seed + seed, checkpoint=tmp_path / "by-hand.pt",
            progress=Silent(), name="by hand", teacher=teacher,
        )  # fmt: skip
        return module


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.fixture
def lab(tmp_path):
    return lambda name="run", **sections: Lab(tmp_path / "runs" / name, **sections)


def refused(**distill):
    """What the configuration reader says of these settings."""
    from edgekd.errors import UsageError

    with pytest.raises(UsageError) as caught:
        validate({"distill": distill}, where="c.yaml", lines={})
    return str(caught.value)
