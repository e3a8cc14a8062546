"""CIFAR-100: published pairs, methods side by side, with the published recipe. Goes on where it stopped.

    python benchmarks/cifar_table.py [--epochs 240] [--device cuda] [--pair 0 1] [--seeds 3]
    python benchmarks/cifar_table.py --table                  only results/cifar_table.md

EDGEKD_DATA names the folder with cifar100/. Pairs in order; of each the teacher, then the student alone
and by every method, seed after seed. Each training is one line of results/cifar_table.jsonl; teachers,
knowledge and checkpoints stay in .edgekd/cifar_table/. Killed at any point, the same command goes on.
SGD with Nesterov's momentum (the published recipe has the plain one), batch 64, lr 0.05 (0.01 for the
cross-family pair), ×0.1 at 62.5, 75 and 87.5 % of the epochs, weight decay 5e-4, crop with padding 4 and
flip. The last epoch counts; nothing is chosen on the test images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekd.config.schema import Augment, Compute, Data, KnowledgeStorage, Training
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill.compute import autocast, teacher_precision
from edgekd.distill.knowledge_store import StoredKnowledge
from edgekd.distill.method import METHODS, Knowledge, MethodList
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.distill.trainer import TeacherKnowledge, predict, train
from edgekd.distill.workshop import population
from edgekd.models.resolve import build
from edgekd.pipeline.environment import environment
from edgekd.progress import Lines
from edgekd.results import Computing

RESULTS = Path(__file__).parent / "results" / "cifar_table.jsonl"
WORK = Path(".edgekd/cifar_table")
# Teachers of tables that are not finished, so that another machine can go on.
KEPT = RESULTS.with_suffix("")
MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]


@dataclass(frozen=True)
class Pair:
    """Teacher and student, the rate, and what the papers got: teacher, student alone, kd, crd, dkd."""

    teacher: str
    student: str
    published: dict[str, float]
    rate: float = 0.05
    beta: float = 8.0  # of dkd: 2 narrow ResNets, 6 VGG and WRN, 8 others

    @property
    def name(self) -> str:
        return f"{self.teacher} → {self.student}"


def _published(*values: float) -> dict[str, float]:
    return dict(zip(("teacher", "alone", "kd", "crd", "dkd", "mlkd+std"), values, strict=True))


PAIRS = (
    Pair("resnet56", "resnet20", _published(72.34, 69.06, 70.66, 71.16, 71.97, 72.33), beta=2.0),
    Pair("resnet110", "resnet20", _published(74.31, 69.06, 70.67, 71.46, 71.06, 72.27), beta=2.0),
    Pair("wrn40-2", "wrn16-2", _published(75.61, 73.26, 74.92, 75.48, 76.23, 76.95), beta=6.0),
    Pair("resnet32x4", "resnet8x4", _published(79.42, 72.50, 73.33, 75.51, 76.32, 78.28)),
    Pair("vgg13", "vgg8", _published(74.64, 70.36, 72.98, 73.94, 74.68, 75.22), beta=6.0),
    Pair("vgg13", "mobilenetv2", {}, rate=0.01, beta=6.0),
)
PLAIN_KD: dict[str, Any] = {"kd": {"temperature": 4.0, "weight": 0.9}}


def methods(pair: Pair, epochs: int) -> dict[str, tuple[float, list[Any]]]:
    """Name → (alpha, distill.methods), with the weights of the papers. What is not there is left out."""
    warmup = round(20 * epochs / 240)  # the papers' share of a training
    table: dict[str, tuple[float, list[Any]]] = {
        "alone": (1.0, []),
        "kd": (0.1, [PLAIN_KD]),
        "kd+std": (0.1, [{"kd": {"temperature": 2.0, "weight": 9.0, "standardize": True}}]),
        "dkd": (1.0, [{"dkd": {"beta": pair.beta, "warmup": warmup}}]),
        "dist": (1.0, ["dist"]),
        "mlkd": (0.1, ["mlkd"]),
        "at+kd": (0.1, [PLAIN_KD, "at"]),
        "sp+kd": (0.1, [PLAIN_KD, "sp"]),
        "rkd+kd": (0.1, [PLAIN_KD, "rkd"]),
        "crd": (1.0, ["crd"]),
        "crd+kd": (0.1, [PLAIN_KD, "crd"]),
        "reviewkd": (1.0, [{"reviewkd": {"warmup": warmup}}]),
    }
    known = set(METHODS.names())
    names = {
        n: {m if isinstance(m, str) else next(iter(m)) for m in ms} for n, (_, ms) in table.items()
    }
    return {name: entry for name, entry in table.items() if names[name] <= known}


def main() -> None:
    """Train what is missing, in order, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--teacher-epochs", type=int, help="As many as --epochs unless given.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto")
    parser.add_argument("--pair", type=int, nargs="+", default=range(len(PAIRS)), metavar="N")
    parser.add_argument("--method", nargs="+", help="Only these.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="Training and test images; for a smoke check.")
    parser.add_argument("--views", type=int, default=240, help="Views per image; see below.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        bench = Bench(options)
        for number in options.pair:
            for seed in range(options.seeds):
                for name in methods(PAIRS[number], options.epochs):
                    if options.method is None or name in options.method:
                        bench.train(PAIRS[number], name, seed)
    text = table(lines(options.results))
    print(text)
    options.results.with_suffix(".md").write_text(text, encoding="utf-8")


class Bench:
    """Data, settings, and the trainings that were done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        source = cifar100(options.work)
        # The recipe trains on all 50,000; the last epoch is kept, so that hardly any is needed for
        # validation, which only shows how it goes.
        config = Data(
            source=f"npz:{source}", validation=0.01, mean=MEAN, std=STD, limit=options.limit
        )
        self.data = load(config, 0, Path.cwd())
        # As many views as epochs, as the papers had it, unless disk or CPU say otherwise.
        augment = Augment(crop=4, flip=True, views=min(options.views, options.epochs))
        self.views = Views(self.data, augment, 0)
        self.about = {"epochs": options.epochs, "limit": options.limit, "views": augment.views}
        self.about["teacher_epochs"] = options.teacher_epochs or options.epochs
        self.progress = Lines(60)

    def train(self, pair: Pair, name: str, seed: int) -> None:
        """One training, unless its line is there."""
        key = {"pair": pair.name, "method": name, "seed": seed, **self.about}
        if any(line.items() >= key.items() for line in lines(self.options.results)):
            return
        teacher = self.teacher(pair)
        alpha, entries = methods(pair, self.options.epochs)[name]
        objective = Objective(alpha, MethodList.parse(entries).entries)
        student = self.network(pair.student, 1000 + seed)
        if objective.needs_teacher:
            example = self.data.tensor(self.data.train[:4])
            objective.prepare(student, teacher, example, seed, population(self.data))
        started = time.monotonic()
        folder = self.options.work / "-".join(str(v) for v in key.values()).replace(" → ", "-")
        history = train(
            student, self.data, self.views, objective, self.recipe(pair.rate, self.options.epochs),
            seed=seed, checkpoint=folder.with_suffix(".pt"), progress=self.progress,
            name=f"{pair.name} {name}",
            teacher=self.ask(pair, teacher, objective) if objective.needs_teacher else None,
        )  # fmt: skip
        self.keep(key, student, history.computing, time.monotonic() - started)
        folder.with_suffix(".pt").unlink(missing_ok=True)

    def teacher(self, pair: Pair) -> nn.Module:
        """Trained once by the same recipe, then read."""
        about = "-".join(str(value) for value in self.about.values())
        path = self.options.work / f"{pair.teacher}-{about}.safetensors"
        path = KEPT / path.name if (KEPT / path.name).exists() else path
        network = self.network(pair.teacher, 0)
        if not path.exists():
            started = time.monotonic()
            history = train(
                network, self.data, self.views, Objective(),
                self.recipe(pair.rate, self.about["teacher_epochs"]), seed=0,
                checkpoint=path.with_suffix(".pt"), progress=self.progress, name=pair.teacher,
            )  # fmt: skip
            save_file(network.state_dict(), path)
            key = {"pair": pair.name, "method": "teacher", "seed": 0, **self.about}
            self.keep(key, network, history.computing, time.monotonic() - started)
            path.with_suffix(".pt").unlink(missing_ok=True)
        network.load_state_dict(load_file(path))
        return network.eval()

    def ask(self, pair: Pair, teacher: nn.Module, objective: Objective) -> TeacherKnowledge:
        """From the store that all methods and seeds of the pair share."""
        tapped = Tapped(teacher, objective.teacher_taps)
        weights = hashlib.sha256()
        for value in teacher.state_dict().values():
            weights.update(value.cpu().numpy().tobytes())

        def answer(inputs: torch.Tensor, precision: str) -> Knowledge:
            teacher.to(inputs.device)
            how = Computing(device=inputs.device.type, precision=precision)
            with torch.no_grad(), autocast(how), tapped:
                return Knowledge(*tapped(inputs))

        example = self.views.batch(self.data.train[:64], 0)
        precision = teacher_precision("auto", lambda p: answer(example, p).logits)
        stored = StoredKnowledge(
            lambda inputs, indices, view: answer(inputs, precision),
            self.options.work / "knowledge",
            {"teacher": weights.hexdigest(), "precision": precision, **self.about},
            KnowledgeStorage(),
            views=self.views.count,
            samples=len(self.data.labels),
            rows=self.data.train,
            example=answer(example, precision),
        )
        # With the samples' numbers, which contrastive methods look at.
        return lambda inputs, indices, view: replace(stored(inputs, indices, view), indices=indices)

    def network(self, name: str, seed: int) -> nn.Module:
        shape, classes = self.data.input.shape, len(self.data.classes)
        return build(
            f"zoo:{name}", {}, input_shape=shape, classes=classes, seed=seed, base=Path.cwd()
        )

    def recipe(self, rate: float, epochs: int) -> Training:
        return Training(
            epochs=epochs,
            learning_rate=rate,
            schedule="step",
            warmup=0.0,
            select="last",
            compute=Compute(device=self.options.device, precision=self.options.precision),
            checkpoint_every=30.0,
        )

    def keep(
        self, key: dict[str, Any], network: nn.Module, how: Computing | None, seconds: float
    ) -> None:
        """One line, on disk before anything else is begun."""
        right = predict(network, self.data, self.data.test).argmax(1).numpy()
        accuracy = 100 * float((right == self.data.labels[self.data.test]).mean())
        line = {**key, "accuracy": accuracy, "computing": str(how), "seconds": round(seconds, 1)}
        line["torch"] = torch.__version__
        line["machine"] = environment()["machine"].get("cpu_model")
        if how is not None and how.device != "cpu":
            line["machine"] = torch.cuda.get_device_name()
        with self.options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def cifar100(work: Path) -> Path:
    """The pictures of $EDGEKD_DATA/cifar100 as arrays, unpacked once."""
    path = (work / "cifar100.npz").absolute()
    if not path.exists():
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None
        root = Path(os.environ["EDGEKD_DATA"]) / "cifar100"

        def tiles(name: str) -> np.ndarray:
            picture = np.asarray(Image.open(root / name).convert("RGB"))
            x = picture.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4)
            return x.reshape(-1, 32, 32, 3)

        labels = np.load(root / "labels.npz")
        partial = path.with_name("partial.npz")
        np.savez(
            partial,
            x_train=np.concatenate([tiles(f"train-{i}.webp") for i in range(5)]),
            y_train=labels["y_train"],
            x_test=tiles("test-0.webp"),
            y_test=labels["y_test"],
            classes=labels["classes"],
        )
        partial.replace(path)
    return path


def lines(results: Path) -> list[dict[str, Any]]:
    """Everything that was trained so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def table(found: list[dict[str, Any]]) -> str:
    """Pairs by methods: mean ± standard error over seeds, and what the papers say."""
    text = [
        "# CIFAR-100\n",
        "Accuracy on the 10,000 test images in %, last epoch: mean ± standard error (seeds); in brackets "
        "the published one. `python benchmarks/cifar_table.py`. The published recipe but for Nesterov's "
        "momentum, and for what the headings say.\n",
    ]
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in found:
        settings[line["epochs"], line["limit"], line["views"], line["teacher_epochs"]].append(line)
    published = {pair.name: pair.published for pair in PAIRS}
    for (epochs, limit, views, longer), part in settings.items():
        pairs = list(dict.fromkeys(line["pair"] for line in part))
        names = list(dict.fromkeys(line["method"] for line in part))
        data = "all images" if limit is None else f"{limit} images"
        teacher = "" if longer == epochs else f" (teacher {longer})"
        text += [f"## {epochs} epochs{teacher}, {data}, {views} views\n"]
        command = f"--epochs {epochs} --teacher-epochs {longer} --views {views}"
        command += "" if limit is None else f" --limit {limit}"
        computed = sorted({line["computing"] for line in part})
        text += [f"`{command}`; computed on {'; '.join(computed)} (`--device`, `--precision`).\n"]
        text += ["| | " + " | ".join(pairs) + " |", "|---|" + "--:|" * len(pairs)]
        for name in names:
            cells = []
            for pair in pairs:
                values = [
                    line["accuracy"]
                    for line in part
                    if (line["pair"], line["method"]) == (pair, name)
                ]
                theirs = published.get(pair, {}).get(name)
                cells.append(cell(values) + (f" [{theirs:.2f}]" if theirs else ""))
            text.append(f"| {name} | " + " | ".join(cells) + " |")
        machines = sorted({f"{line['machine']}, torch {line['torch']}" for line in part})
        minutes = sum(line["seconds"] for line in part) / 60
        text += ["", f"{minutes:.1f} minutes of training on: {'; '.join(machines)}.\n"]
    return "\n".join(text)


def cell(values: list[float]) -> str:
    """ "70.66 ± 0.11 (3)"."""
    if not values:
        return "–"
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{error} ({len(values)})"


if __name__ == "__main__":
    main()
