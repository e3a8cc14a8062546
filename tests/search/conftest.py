"""Searches on digits, with networks and trainings as small and short as they can be."""

from pathlib import Path

import pytest

from edgekd import api
from edgekd.progress import Silent
from edgekd.search.search import search

PLAIN = {"device": "cpu", "precision": "f32", "channels_last": False, "compile": False}
TINY = {
    "name": "tiny",
    "data": {"limit": 300},
    "teacher": {
        "model": "zoo:mlp",
        "args": {"hidden": [48, 32]},
        "train": {"epochs": 6, "threads": 1, "learning_rate": 0.05, "compute": PLAIN},
    },
    "student": "auto",
    "distill": {
        "epochs": 4,
        "threads": 1,
        "learning_rate": 0.05,
        "compute": PLAIN,
        "knowledge": {"precision": "f32", "teacher": "f32"},
    },
    "search": {
        "candidates": 2,
        "trials": 2,
        "rungs": 2,
        "keep": 2.0,
        "methods": [["kd"]],
        "prune": [0.5],
        "seconds": 0.05,
        "jobs": 1,
    },
    "export": {"formats": ["onnx"]},
    "profile": {"targets": ["local"], "launches": 1, "min_seconds": 0.02, "max_seconds": 0.05,
                "operators": False},
    "gate": {"budgets": [
        {"metric": "latency_p50", "max": "1 s", "runtime": "onnxruntime"},
        {"metric": "accuracy_drop", "max": "90 points"},
    ]},
    "history": None,
}  # fmt: skip


class Told(Silent):
    """Keeps what was said."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.lines.append(text)


class Lab:
    """A project folder: its configuration, and the search beside its runs."""

    def __init__(self, path: Path, **sections):
        self.base = path
        self.value = {**TINY, **sections}
        self.out = path / "runs/tiny-search"
        self.best = path / "tiny.best.yaml"
        self.told = Told()

    @property
    def config(self):
        config, _ = api.resolve(self.value)
        return config

    def search(self, **more):
        return search(
            self.config, base=self.base, out=self.out, progress=self.told, best=self.best, **more
        )


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """One finished search that tests look at, with what it left for the run `runs/tiny`."""
    lab = Lab(tmp_path_factory.mktemp("searched"))
    lab.report = lab.search(goes_on=[lab.base / "runs/tiny"])
    return lab
