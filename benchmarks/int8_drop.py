"""What INT8 costs students of MNIST and CIFAR-100: post-training, accuracy-aware, distillation-aware QAT.

    python benchmarks/int8_drop.py [--seeds 3] [--data NAME] [--once]   go on where it was; --once: one
    python benchmarks/int8_drop.py --table                  only results/int8_drop.md

EDGEKD_DATA names the folder with mnist/ and cifar100/. Accuracies are those of the deployed files on
the 10,000 test images, in both runtimes; a drop is that of the float32 file in the same runtime less
that of the INT8 file, in points. Each student is one line of results/int8_drop.jsonl. Schedules are
short (see SETUPS): what is measured is the drop, not how good a student can get.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import edgekd
from edgekd.api import resolve
from edgekd.config.schema import Data
from edgekd.data.resolve import Dataset
from edgekd.data.resolve import load as load_data
from edgekd.pipeline.environment import environment
from edgekd.pipeline.line import run_line
from edgekd.pipeline.run import Run
from edgekd.profile.device.runtimes import RUNTIMES, load
from edgekd.progress import Lines

RESULTS = Path(__file__).parent / "results" / "int8_drop.jsonl"
WORK = Path(".edgekd/int8_drop")
SCHEDULE = {"batch_size": 64, "threads": 1, "select": "last"}
SETUPS: dict[str, dict[str, Any]] = {
    "mnist": {
        "data": {"source": "idx:$EDGEKD_DATA/mnist", "limit": 10_000},
        "teacher": {"model": "zoo:mlp", "args": {"hidden": [1200, 1200]}, "epochs": 3},
        "student": {"model": "zoo:dscnn", "epochs": 3},
        "qat": {"epochs": 1},
    },
    "cifar100": {
        "data": {"source": f"npz:{WORK}/cifar100.npz", "limit": 25_000},
        "teacher": {"model": "zoo:resnet14", "epochs": 5},
        "student": {"model": "zoo:resnet8", "epochs": 5},
        "qat": {"epochs": 2},
    },
}
PACKAGES = ("torch", "onnxruntime", "openvino")
WAYS = {
    "ptq": {},
    "aware": {"max_drop": "0.3 points"},
    "qat": None,  # the setup's
}


def main() -> None:
    """Run what is missing, in order, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", choices=SETUPS, action="append")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    missing = [
        (name, seed)
        for seed in range(options.seeds)
        for name in options.data or SETUPS
        if not any((m["data"], m["seed"]) == (name, seed) for m in lines())
    ]
    for name, seed in [] if options.table else missing[: 1 if options.once else None]:
        keep(measured(name, seed))
    text = table(lines())
    print(text)
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")


def lines() -> list[dict]:
    """Everything that was measured so far."""
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def keep(line: dict) -> None:
    """One result, at once on disk."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def measured(name: str, seed: int) -> dict:
    """One student: its float32 files, and all ways to INT8."""
    started = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    if name == "cifar100":
        unpack_cifar()
    weights = teacher_weights(name)
    folder = WORK / f"{name}-{seed}"
    result: dict = {"data": name, "seed": seed}
    for way, quantize in WAYS.items():
        config = configuration(name, seed, weights, quantize)
        began = time.monotonic()
        run = edgekd.quantize(config, out=folder, progress=Lines())
        data = load_data(Data(**config["data"]), 0, Path.cwd())
        if "f32" not in result:
            result["f32"] = accuracies(run, data, "f32")
        report = run.quantize
        result[way] = {
            **accuracies(run, data, "int8"),
            "seconds": round(time.monotonic() - began, 1),
            "reverted": {aware.format: aware.reverted for aware in report.accuracy_aware},
            "size": {file.format: file.size for file in report.files},
        }
        print(name, seed, way, result["f32"], result[way], flush=True)
    result["size"] = {f.format: f.size for f in run.export.files if f.role == "student"}
    result["seconds"] = round(time.monotonic() - started)
    return result


def configuration(name: str, seed: int, weights: str | None, quantize: dict | None) -> dict:
    """A run; without weights it trains the teacher."""
    setup = SETUPS[name]
    teacher, student = dict(setup["teacher"]), dict(setup["student"])
    training = {**SCHEDULE, "epochs": teacher.pop("epochs"), "learning_rate": 0.05}
    distill = {**SCHEDULE, "epochs": student.pop("epochs"), "learning_rate": 0.05}
    ways = {"qat": {**SCHEDULE, **setup["qat"]}} if quantize is None else quantize
    return {
        "seed": seed,
        "data": setup["data"],
        "teacher": teacher | ({"weights": weights} if weights else {"train": training}),
        "student": student,
        "distill": {**distill, "doctor": False},
        "quantize": ways,
        "history": None,
    }


def teacher_weights(name: str) -> str:
    """The teacher, trained once for all seeds."""
    config, base = resolve(configuration(name, 0, None, {}))
    out = WORK / f"{name}-teacher"
    run, _ = run_line(config, base=base, out=out, until="teacher", progress=Lines())
    return str((run.path / "teacher/model.safetensors").absolute())


def unpack_cifar() -> None:
    """CIFAR-100 from its lossless pictures as the arrays that `npz:` reads."""
    path = WORK / "cifar100.npz"
    if path.exists():
        return
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    folder = Path(os.environ["EDGEKD_DATA"]) / "cifar100"

    def tiles(file: str) -> np.ndarray:
        picture = np.asarray(Image.open(folder / file).convert("RGB"))
        cut = picture.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4)
        return cut.reshape(-1, 32, 32, 3)

    labels = np.load(folder / "labels.npz")
    np.savez(
        path,
        x_train=np.concatenate([tiles(f"train-{n}.webp") for n in range(5)]),
        y_train=labels["y_train"],
        x_test=tiles("test-0.webp"),
        y_test=labels["y_test"],
        classes=labels["classes"],
    )


def accuracies(run: Run, data: Dataset, variant: str) -> dict[str, float]:
    """Test accuracy in per cent of the student's deployed files, by runtime."""
    found = {}
    for file in run.files:
        if (file.role, file.variant) != ("student", variant):
            continue
        for runtime in (r for r in RUNTIMES if file.format in RUNTIMES[r].formats):
            session = load(runtime, run.path / file.path, threads=1, precision="f32")
            right = [
                session.run(data.tensor(part).numpy())[0].argmax(1) == data.labels[part]
                for part in np.array_split(data.test, max(1, len(data.test) // 250))
            ]
            found[f"{runtime} {file.format}"] = 100 * float(np.concatenate(right).mean())
    return found


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    rows = [
        "# INT8 drop of students on MNIST and CIFAR-100",
        "",
        "`python benchmarks/int8_drop.py`; points of test accuracy (10,000 images) that the INT8 file "
        "loses to the float32 file in the same runtime, mean ± standard deviation over the seeds; "
        "negative: it gained. `aware`: `max_drop: 0.3 points` on the validation split.",
        "",
        "| data | runtime, file | seeds | float32, % | PTQ | aware (layers in float32) | QAT |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SETUPS:
        mine = [r for r in results if r["data"] == name]
        for runtime in mine[0]["f32"] if mine else ():
            cells = []
            for way in WAYS:
                drops = [r["f32"][runtime] - r[way][runtime] for r in mine]
                layers = "/".join(str(r[way]["reverted"].get(runtime.split()[1], 0)) for r in mine)
                cells.append(spread(drops) + (f" ({layers})" if way == "aware" else ""))
            base = spread([r["f32"][runtime] for r in mine], sign=False)
            rows.append(f"| {name} | {runtime} | {len(mine)} | {base} | {' | '.join(cells)} |")
    for name in SETUPS:
        if not any(r["data"] == name for r in results):
            rows += ["", f"{name}: not measured yet."]
    rows += ["", "Setups, otherwise edgekd's defaults:", ""]
    rows += [f"- {name}: `{json.dumps(setup)}`" for name, setup in SETUPS.items()]
    here = environment()
    versions = ", ".join(f"{k} {v}" for k, v in here["packages"].items() if k in PACKAGES)
    machine = here["machine"]
    rows += [
        "",
        f"Every schedule: `{json.dumps(SCHEDULE)}`. {versions}, nncf {version('nncf')}; "
        f"{machine['cpu_model']}, {machine['cores']} cores, avx512_vnni: "
        f"{'yes' if 'avx512_vnni' in machine['isa'] else 'no'}.",
    ]
    return "\n".join(rows) + "\n"


def spread(values: list[float], *, sign: bool = True) -> str:
    """Mean and standard deviation."""
    deviation = stdev(values) if len(values) > 1 else math.nan
    return f"{mean(values):{'+' if sign else ''}.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
