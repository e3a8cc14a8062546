"""Images per second of a distillation: edgekd, the plain textbook loop, and torchdistill, in turns.

    python benchmarks/distill_throughput.py [--threads 1 2] [--rounds 5] [--write]

ResNet-110 → ResNet-20 at 32×32, batch 64, kd at T = 4. Every round runs a block of steps of each, one
after the other, so that a machine which is busy with something else is so for all. Ratios are of medians
over blocks; the processor time beside the wall time is what a shared machine disturbs less.
- textbook: both models in float32 in every step, as tutorials do it (written below);
- torchdistill: its DistillationBox on the same pair (installed from PyPI into .edgekd/ when first used);
- edgekd: `train()` itself, with an empty store, with a filled one, and on the labels alone.
Images are random: speed does not depend on what they show. All get their batches from edgekd's views,
which spares the others their data loaders.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgekd.config.schema import Augment, Compute, KnowledgeStorage, Training
from edgekd.config.units import format_quantity
from edgekd.data.resolve import Dataset
from edgekd.data.views import Views
from edgekd.distill.compute import choose
from edgekd.distill.knowledge_store import Dense, StoredKnowledge
from edgekd.distill.memory import kept_memory
from edgekd.distill.method import Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.trainer import train
from edgekd.models.resolve import build
from edgekd.pipeline.environment import environment
from edgekd.progress import Silent
from edgekd.results import InputSpec

RESULT = Path(__file__).parent / "results" / "distill_throughput.md"
TORCHDISTILL = ("torchdistill==1.1.5", "torchvision==0.28.0")
BATCH, CLASSES, SHAPE, T, ALPHA = 64, 100, (3, 32, 32), 4.0, 0.1
WARM = 2  # steps of a block that are not counted
AUGMENT = Augment(crop=4, flip=True, views=1)
Times = list[tuple[float, float]]  # wall and processor seconds of each step


class Clock(Silent):
    """When each step was done."""

    def __init__(self) -> None:
        self.marks: Times = []

    def advance(self, amount: float = 1, **figures: object) -> None:
        if amount:
            self.marks.append((time.perf_counter(), time.process_time()))

    def steps(self) -> Times:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [(b[0] - a[0], b[1] - a[1]) for a, b in pairs][WARM - 1 :]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="per block, beside 2 to warm up")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = "\n".join(
        [
            "# Distillation throughput\n",
            "ResNet-110 → ResNet-20, 3×32×32, batch 64, kd; blocks in turns, medians over blocks.",
            f"Command: `python benchmarks/distill_throughput.py {' '.join(sys.argv[1:])}`\n",
            *(table(threads, options.rounds, options.steps) for threads in options.threads),
            f"Machine: {machine()}",
        ]
    )
    print(text)
    if options.write:
        RESULT.write_text(text + "\n", encoding="utf-8")


def table(threads: int, rounds: int, steps: int) -> str:
    """All contestants on this many threads."""
    with tempfile.TemporaryDirectory() as work:
        # One after the other: while one is made, nothing else runs.
        contestants = [Contestant(name, threads, steps, work) for name in CONTESTANTS]
        for number in range(rounds):
            for contestant in contestants:
                contestant.run()
                print(
                    f"round {number} {contestant.name}: {contestant.blocks[-1][0]:.3f} s",
                    file=sys.stderr,
                )
        for contestant in contestants:
            contestant.end()
    return lines({contestant.name: contestant for contestant in contestants}, threads, steps)


def lines(by_name: dict[str, Contestant], threads: int, steps: int) -> str:
    """The table as Markdown."""
    wall = {name: median(b[0] for b in c.blocks) for name, c in by_name.items()}
    cpu = {name: median(b[1] for b in c.blocks) for name, c in by_name.items()}
    rows = [
        f"| {name} | {1000 * wall[name]:.0f} | {1000 * cpu[name]:.0f} | {BATCH / wall[name]:.0f} | "
        f"{wall['textbook'] / wall[name]:.2f}× | {cpu['textbook'] / cpu[name]:.2f}× | "
        f"{cpu['torchdistill'] / cpu[name]:.2f}× | {format_quantity(contestant.peak, 'bytes')} |"
        for name, contestant in by_name.items()
    ]
    filled, labels_alone = by_name["edgekd, store filled"], by_name["edgekd, labels alone"]
    alone = [
        median(f[kind] / a[kind] for f, a in zip(filled.blocks, labels_alone.blocks, strict=True))
        for kind in (0, 1)
    ]
    per_view = 2 * (Dense((CLASSES,)).words + 2) * 50_000
    rounds = len(filled.blocks)
    return "\n".join(
        [
            f"## {threads} thread{'s' if threads > 1 else ''}, {rounds} rounds of {steps} steps\n",
            f"Chosen by `distill.compute: auto`: {filled.computing}.\n",
            "| | ms a step | CPU ms | images/s | × textbook | × (CPU) | × torchdistill (CPU) | peak |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"A step with the store against the labels alone, median over rounds: "
            f"{alone[0]:.3f} (wall), {alone[1]:.3f} (CPU).",
            f"The store takes {format_quantity(per_view, 'bytes')} on disk per view of 50,000 samples, "
            "memory-mapped (page cache that the system may take back). Peak: resident memory of the "
            "whole process.\n",
        ]
    )


class Contestant:
    """One way to distil, in a process of its own, which waits between its blocks."""

    def __init__(self, name: str, threads: int, steps: int, work: str) -> None:
        self.name, self.blocks = name, list[tuple[float, float]]()
        self.peak = 0.0
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        folder = Path(work) / f"{list(CONTESTANTS).index(name)}"
        self._process = context.Process(
            target=compete, args=(other, name, threads, steps, folder), daemon=True
        )
        self._process.start()
        other.close()
        self.computing = self._pipe.recv()

    def run(self) -> None:
        """A block: the medians over its steps, in seconds of wall and of processor."""
        self._pipe.send("run")
        self.blocks.append(self._pipe.recv())

    def end(self) -> None:
        """Learn the peak of its memory, in bytes."""
        self._pipe.send("end")
        self.peak = self._pipe.recv()
        self._process.join()


def compete(pipe: Connection, name: str, threads: int, steps: int, work: Path) -> None:
    """What a contestant's process does."""
    torch.set_num_threads(threads)
    work.mkdir()
    data = images((steps + WARM) * BATCH)
    models = [
        build(f"zoo:{n}", {}, input_shape=SHAPE, classes=CLASSES, seed=0, base=Path.cwd())
        for n in ("resnet110", "resnet20")
    ]
    teacher, student = settled(models[0], data), models[1]
    run, computing = CONTESTANTS[name](data, teacher, student, threads, work)
    pipe.send(computing)
    while pipe.recv() == "run":
        pipe.send(tuple(median(column) for column in zip(*run(), strict=True)))
    pipe.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def images(count: int) -> Dataset:
    """Random pictures: `count` to train on, a few to validate with."""
    random = np.random.default_rng(0)
    everything = np.arange(count + 8)
    return Dataset(
        inputs=random.integers(0, 256, (count + 8, *SHAPE), dtype=np.uint8),
        labels=random.integers(0, CLASSES, count + 8),
        classes=tuple(map(str, range(CLASSES))),
        train=everything[:count],
        validation=everything[count:],
        test=everything[count:],
        input=InputSpec(shape=SHAPE, scale=255.0, mean=(0.5,) * 3, std=(0.25,) * 3),
    )


def settled(teacher: nn.Module, data: Dataset) -> nn.Module:
    """With statistics of these images in its batch normalisation: untrained ones let logits explode."""
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        teacher.train()(data.tensor(data.train[:BATCH]))
    return teacher.eval()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def textbook(data: Dataset, teacher: nn.Module, student: nn.Module) -> Times:
    """What a tutorial does: both models in every step."""
    student, clock = copy.deepcopy(student).train(), Clock()
    sgd, views, labels = optimizer(student), Views(data, AUGMENT, 0), torch.from_numpy(data.labels)
    for indices in torch.from_numpy(data.train).split(BATCH):
        inputs = views.batch(indices, 0)
        with torch.no_grad():
            v = teacher(inputs)
        z = student(inputs)
        soft = F.kl_div(F.log_softmax(z / T, 1), F.softmax(v / T, 1), reduction="batchmean")
        loss = ALPHA * F.cross_entropy(z, labels[indices]) + (1 - ALPHA) * T**2 * soft
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss.item()
        clock.advance()
    return clock.steps()


def torchdistill(data: Dataset, teacher: nn.Module, student: nn.Module) -> Times:
    """DistillationBox, with the settings of its own examples."""
    box, clock = distillation_box()(
        copy.deepcopy(teacher),
        copy.deepcopy(student),
        {},
        {
            "num_epochs": 1,
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {
                "key": "SGD",
                "kwargs": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": {
                    "student_module_path": ".", "student_module_io": "output",
                    "teacher_module_path": ".", "teacher_module_io": "output",
                    "temperature": T, "alpha": ALPHA, "reduction": "batchmean",
                }}, "weight": 1.0}}},
            },
        },
        torch.device("cpu"), None, False, 1,
    ), Clock()  # fmt: skip
    box.teacher_model.eval()
    box.student_model.train()
    views, labels = Views(data, AUGMENT, 0), torch.from_numpy(data.labels)
    for indices in torch.from_numpy(data.train).split(BATCH):
        loss = box.forward_process(views.batch(indices, 0), labels[indices])
        box.post_forward_process(loss)
        loss.item()
        clock.advance()
    return clock.steps()


def distillation_box() -> type:
    """From PyPI, into a folder of its own: never a dependency of edgekd."""
    folder = Path(".edgekd/torchdistill").absolute()
    if not (folder / "torchdistill").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, *TORCHDISTILL], check=True)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        # PyPI's torchvision has CUDA operators that do not load beside a CPU build of PyTorch. It
        # only wants these two to be known; no detection happens here.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library
        import logging

        logging.disable(logging.INFO)
    from torchdistill.core.distillation import DistillationBox

    return DistillationBox


class Edgekd:
    """`train()` as the distill stage calls it, one epoch a block."""

    def __init__(
        self, data: Dataset, teacher: nn.Module, student: nn.Module, threads: int, work: Path
    ) -> None:
        self.data, self.teacher, self.student = data, teacher, student
        self.threads, self.work, self.blocks = threads, work, 0
        self.views = Views(data, AUGMENT, 0)
        batch = torch.from_numpy(data.train[:BATCH])
        self.computing = choose(
            Compute(), student, self.views.batch(batch, 0), self.views.labels(batch, 0), 10**6
        )

    def first_epoch(self, precision: str = "f32") -> Times:
        self.blocks += 1
        return self._train(self._knowledge(f"store{self.blocks}", precision))

    def filled(self) -> Times:
        if not (self.work / "filled").exists():
            self._train(self._knowledge("filled"))
        return self._train(self._knowledge("filled"))

    def labels_alone(self) -> Times:
        return self._train(None)

    def _knowledge(self, name: str, precision: str = "f32") -> StoredKnowledge:
        def ask(inputs: torch.Tensor, indices: torch.Tensor, view: int) -> Knowledge:
            lower = precision == "bf16"
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
                return Knowledge(self.teacher(inputs))

        return StoredKnowledge(
            ask, self.work / name, {"teacher": "here"}, KnowledgeStorage(), views=1,
            samples=len(self.data.labels), rows=self.data.train,
            example=Knowledge(torch.zeros(1, CLASSES)),
        )  # fmt: skip

    def _train(self, knowledge: StoredKnowledge | None) -> Times:
        clock = Clock()
        self.blocks += 1
        how = self.computing
        train(
            copy.deepcopy(self.student),
            self.data,
            self.views,
            Objective(ALPHA, (KD(temperature=T),)) if knowledge else Objective(),
            Training(
                epochs=1,
                batch_size=BATCH,
                threads=self.threads,
                compute=Compute.model_validate(how.model_dump(exclude={"milliseconds"})),
            ),
            seed=0,
            checkpoint=self.work / f"{self.blocks}.pt",
            progress=clock,
            name="student",
            teacher=knowledge,
        )
        return clock.steps()


Run = Callable[[], Times]


def keeping(data: Dataset, teacher: nn.Module, student: nn.Module) -> Times:
    with kept_memory():
        return textbook(data, teacher, student)


def plain(loop: Callable[[Dataset, nn.Module, nn.Module], Times]) -> Entrant:
    def entered(
        data: Dataset, teacher: nn.Module, student: nn.Module, threads: int, work: Path
    ) -> tuple[Run, str]:
        return lambda: loop(data, teacher, student), ""

    return entered


def ours(block: Callable[[Edgekd], Times]) -> Entrant:
    def entered(
        data: Dataset, teacher: nn.Module, student: nn.Module, threads: int, work: Path
    ) -> tuple[Run, str]:
        edge = Edgekd(data, teacher, student, threads, work)
        times = ", ".join(f"{how} {ms:.0f} ms" for how, ms in edge.computing.milliseconds.items())
        return lambda: block(edge), f"{edge.computing} ({times})"

    return entered


Entrant = Callable[[Dataset, nn.Module, nn.Module, int, Path], tuple[Run, str]]
CONTESTANTS: dict[str, Entrant] = {
    "textbook": plain(textbook),
    "textbook, memory kept": plain(keeping),
    "torchdistill": plain(torchdistill),
    "edgekd, first epoch": ours(Edgekd.first_epoch),
    "edgekd, first epoch, bf16 teacher": ours(lambda edge: edge.first_epoch("bf16")),
    "edgekd, store filled": ours(Edgekd.filled),
    "edgekd, labels alone": ours(Edgekd.labels_alone),
}


def machine() -> str:
    name = environment()["machine"].get("cpu_model")
    return f"{name}, torch {torch.__version__}, {', '.join(TORCHDISTILL)}"


if __name__ == "__main__":
    main()
