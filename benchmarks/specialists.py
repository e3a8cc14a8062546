"""Hinton, Vinyals, Dean 2015, §5, on MNIST: generalist, specialists, and all of them in one student.

    python benchmarks/specialists.py [--seeds 3]     go on where it was, and write results/specialists.md

EDGEKD_DATA names the folder with mnist/. A subset of MNIST, so that a generalist has classes to confuse
(JFT, the paper's data, is not public). The paper shows that specialists improve the generalist and leaves
open whether they can be distilled back into one network; here they are, beside a student of the generalist
alone and of an ensemble of as many networks. Each run is a folder in .edgekd/specialists/; the students
of one seed have the same teacher. Errors are on test images that nothing was chosen on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from edgekd import api
from edgekd.pipeline.environment import environment
from edgekd.pipeline.run import Run
from edgekd.progress import Lines
from edgekd.results import SchemeReport

RESULTS = Path(__file__).parent / "results" / "specialists.md"
WORK = Path(".edgekd/specialists")
PLAIN = {"batch_size": 100, "weight_decay": 0.0, "select": "last", "threads": 1}
# Like the paper's, the generalist is too small for what it was shown.
SMALL = {"model": "zoo:mlp", "args": {"hidden": [16], "norm": False}}
BASE = {
    "data": {"source": "idx:$EDGEKD_DATA/mnist", "limit": 10000, "validation": 0.1},
    "teacher": {**SMALL, "train": {**PLAIN, "epochs": 20, "learning_rate": 0.05}},
    "student": SMALL,
    "history": None,
}
SOFT = {**PLAIN, "epochs": 20, "learning_rate": 0.05}
SPECIALISTS = {"specialists": {"count": 4, "classes": 4, "epochs": 10}}
BIGGER = {"model": "zoo:mlp", "args": {"hidden": [48], "norm": False}}
# Name → what differs from BASE and SOFT
STUDENTS: dict[str, dict[str, Any]] = {
    "alone": {"methods": [], "alpha": 1.0},
    "of the generalist": {},
    "of generalist and specialists": {"scheme": SPECIALISTS},
    "of generalist and 4 more like it": {"scheme": {"ensemble": {"members": 4}}},
    "of 48 units, of the generalist": {"student": BIGGER},
    "of 48 units, of generalist and specialists": {"student": BIGGER, "scheme": SPECIALISTS},
}


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    runs = {
        (seed, name): api.distill(
            {
                **BASE,
                "seed": seed,
                "student": distill.get("student", SMALL),
                "distill": {**SOFT, **{k: v for k, v in distill.items() if k != "student"}},
            },
            out=WORK / f"{name.replace(',', '').replace(' ', '-')}-{seed}",
            progress=Lines(),
        )
        for seed in range(options.seeds)
        for name, distill in STUDENTS.items()
    }
    text = table(runs, options.seeds)
    print(text)
    RESULTS.write_text(text, encoding="utf-8")


def table(runs: dict[tuple[int, str], Run], seeds: int) -> str:
    """The results as Markdown."""
    errors: dict[str, list[int]] = {}
    sets: list[str] = []
    total = 0
    for (seed, name), run in runs.items():
        report = SchemeReport.read(run.path / "student/scheme.json")
        for model in report.models:
            assert model.test is not None
            assert model.test.correct is not None
            wrong = model.test.total - model.test.correct
            total = max(total, model.test.total)
            if "48" in name and model.name != "student":
                continue  # the same as with the small student
            if model.classes:
                before = grouped(run, model.classes)
                sets.append(f"| {seed} | {', '.join(model.classes)} | {before} | {wrong} |")
                continue
            if model.name.startswith("member"):
                continue
            row = f"student {name}" if model.name == "student" else model.name
            errors.setdefault(row, []).append(wrong)
    order = ["generalist", "generalist and specialists", "ensemble"]
    order += [f"student {name}" for name in STUDENTS]
    rows = [
        f"| {row} | {spread(errors[row])} | {', '.join(map(str, errors[row]))} |" for row in order
    ]
    about = environment()
    configuration = json.loads(json.dumps({**BASE, "distill": SOFT, "students": STUDENTS}))
    return "\n".join([
        "# Specialists, and distilling them back", "",
        "`python benchmarks/specialists.py`", "",
        f"MNIST, 9,000 training images, {total:,} test images, {seeds} seeds; errors of the last epoch, "
        "mean ± standard deviation over seeds.", "",
        "| network | errors | by seed |", "|---|---|---|", *rows, "",
        "## What the specialists are", "",
        "Errors in telling these classes and \"other\" apart, of the generalist and of the specialist "
        "(as trained: before its dustbin is corrected for the enriched data).", "",
        "| seed | classes | generalist | specialist |", "|---|---|---|---|", *sets, "",
        "## Configuration", "",
        f"```yaml\n{yaml.safe_dump(configuration, sort_keys=False)}```",
        "",
        f"{about['machine'].get('cpu_model')}, torch {torch.__version__}, commit {about['git']}.", "",
    ])  # fmt: skip


def grouped(run: Run, classes: tuple[str, ...]) -> int:
    """The generalist's errors in telling `classes` and the dustbin apart."""
    from edgekd.data.resolve import load
    from edgekd.distill.trainer import predict
    from edgekd.models import role
    from edgekd.pipeline.line import config_of
    from edgekd.teachers.specialists import Specialist

    config, base = config_of(run)
    dataset = load(config.data, config.data.seed, base)
    numbers = [dataset.classes.index(name) for name in classes]
    model = Specialist(role.load(run, "teacher", base), tuple(numbers)).eval()
    answers = predict(model, dataset, dataset.test).argmax(1)
    labels = torch.full((len(dataset.classes),), len(numbers))
    labels[numbers] = torch.arange(len(numbers))
    return int((answers != labels[dataset.labels[dataset.test]]).sum())


def spread(values: list[int]) -> str:
    """ "74.3 ± 2.1", the standard deviation over seeds."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
