"""Runs on the digits, as small as they can be."""

from edgekd import api
from edgekd.pipeline.line import run_line
from edgekd.pipeline.stages import Context
from edgekd.progress import Silent
from edgekd.teachers.teacher import load

SMALL = {
    "name": "small",
    "teacher": {
        "model": "zoo:mlp",
        "args": {"hidden": [64], "norm": False},
        "train": {"epochs": 6, "threads": 1, "learning_rate": 0.05},
    },
    "student": {"model": "zoo:mlp", "args": {"hidden": [16]}},
    "distill": {"epochs": 3, "threads": 1, "learning_rate": 0.05, "alpha": 0.1},
    "export": {"formats": ["onnx"]},
    "verify": {"tolerance": 1e-3},
    "profile": {
        "min_seconds": 0.05, "max_seconds": 0.5, "interval": 0.5, "launches": 2, "operators": False,
    },
    "history": None,
}  # fmt: skip


def changed(**sections):
    """SMALL with these sections or keys of them in place of its own."""
    result = {**SMALL}
    for name, value in sections.items():
        whole = name in ("teacher", "name", "seed", "history")
        result[name] = value if whole else {**SMALL.get(name, {}), **value}
    return result


def teacher_stage(config, folder, progress=None):
    """The open teacher of a run whose first stage is done, and the run."""
    progress = progress or Silent()
    resolved, base = api.resolve(config)
    run, _ = run_line(resolved, base=base, out=folder, until="teacher", progress=progress)
    return load(run, base, Context(resolved, base, run, folder, progress).dataset), run
