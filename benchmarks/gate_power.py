"""How often the latency gate cries wolf, and how often it lets a slower model through.

    python benchmarks/gate_power.py [--gates 200] [--runtime onnxruntime] [--write]

Real files in a real runtime on this machine, quiet and beside a process that keeps one core busy:
- A/A: the same file as baseline and candidate;
- A/B: a candidate with a few per cent more work. How much slower it really is, is established over a
  long run first.
Against the rule that people use today: each model once, its median, fail above +5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.config.schema import Budget, Export, Gate
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.gate.baseline import compare, launches
from edgekd.gate.budget import Figure, check_budgets
from edgekd.models.resolve import build
from edgekd.pipeline.environment import environment
from edgekd.profile.targets import find
from edgekd.results import InputSpec, ModelCard

SHAPE = (3, 32, 32)
LIMIT = 1.03
NAIVE_LIMIT = 1.05
COLUMNS = (
    "comparison", "true ratio", "machine", "gates", "pass", "fail", "inconclusive", "median time",
    "naive rule fails",
)  # fmt: skip
FORMAT = {"onnxruntime": "onnx", "openvino": "openvino"}


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=200, help="for each line of the table")
    parser.add_argument("--runtime", choices=FORMAT, default="onnxruntime")
    parser.add_argument(
        "--extra", type=int, nargs="*", default=[2, 4], help="channels of extra work"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = table(Path(folder), options)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / f"gate_power_{options.runtime}.md"
        path.write_text(text, encoding="utf-8")


class Slower(nn.Module):
    """A network after a detour through `channels` extra channels at full resolution."""

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.detour = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, 3, 1),
        )  # fmt: skip
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + self.detour(x))


def export(folder: Path, name: str, module: nn.Module, runtime: str) -> list[Path]:
    """The module as a file of the runtime's format, with its parts."""
    place = folder / name
    place.mkdir()
    card = ModelCard(
        role="student", model="zoo:resnet20", args={}, classes=tuple(map(str, range(10))), seed=0,
        input=InputSpec(shape=SHAPE, scale=1, mean=(0,) * 3, std=(1,) * 3), parameters=0,
    )  # fmt: skip
    source = Source(module.eval(), card, torch.randn(2, *SHAPE), place / "student.onnx")
    formats = dict.fromkeys(["onnx", FORMAT[runtime]])
    made = [EXPORTERS.get(f)(source, place, Export()) for f in formats][-1]
    return [made.path, *(part for part in made.files if part != made.path)]


@contextlib.contextmanager
def neighbour(busy: bool):
    """A process that keeps one core busy, or none."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def verdict(source) -> tuple[str, float]:
    """What the gate says of a sequence of launches, and the seconds it took."""
    started = time.monotonic()
    value, interval, conclusive = compare(source, lambda i: not i[0] <= LIMIT <= i[1])
    figure = Figure("latency_vs_baseline", value, interval, "r", "local", conclusive)
    gate = Gate(budgets=[Budget(metric="latency_vs_baseline", max=f"{LIMIT} x")])
    return check_budgets(gate, [figure]).verdict, time.monotonic() - started


def table(folder: Path, options: argparse.Namespace) -> str:
    """The results as Markdown."""
    target = find("local", Path.cwd())
    example = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).numpy()
    net = build("zoo:resnet20", {}, input_shape=SHAPE, classes=10, seed=0, base=folder)
    baseline = export(folder, "a", net, options.runtime)
    candidates = {"A/A": baseline} | {
        f"A/B, {c} extra channels": export(folder, f"b{c}", Slower(net, c), options.runtime)
        for c in options.extra
    }
    rows = []
    for (name, path), busy in itertools.product(candidates.items(), (False, True)):
        source = launches(path, baseline, options.runtime, target, example, 1)
        with neighbour(False):
            truth = math.exp(statistics.mean(itertools.islice(source, 30)))
        found: list[str] = []
        seconds: list[float] = []
        naive: list[bool] = []
        with neighbour(busy):
            for _ in range(options.gates):
                word, took = verdict(source)
                found.append(word)
                seconds.append(took)
                medians = [alone(p[0], options, target, example) for p in (path, baseline)]
                naive.append(medians[0] > NAIVE_LIMIT * medians[1])
                print(
                    f"{name} {'busy' if busy else 'quiet'} {len(found)}: {word} {took:.0f} s",
                    file=sys.stderr,
                )
        share = {word: found.count(word) / len(found) for word in ("pass", "fail", "inconclusive")}
        rows.append(
            f"| {name} | {truth:.3f} | {'one core busy' if busy else 'quiet'} | {len(found)} | "
            f"{share['pass']:.0%} | {share['fail']:.0%} | {share['inconclusive']:.0%} | "
            f"{np.median(seconds):.0f} s | {sum(naive) / len(naive):.0%} |"
        )
    machine = environment()
    return "\n".join(
        [
            f"# The latency gate in {options.runtime}: false alarms and misses",
            "",
            f"`python benchmarks/gate_power.py --gates {options.gates} --runtime {options.runtime} "
            f"--extra {' '.join(map(str, options.extra))} --write`",
            "",
            f"ResNet-20 at 32×32, batch 1, one thread, limit {LIMIT}. The true ratio is the mean of 30 "
            f"launches on the quiet machine. The naive rule: each model once, median, limit {NAIVE_LIMIT}.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---" * len(COLUMNS) + "|",
            *rows,
            "",
            f"Machine: {machine['machine'].get('cpu_model')}, {machine['machine']['cores']} cores.",
            "",
        ]
    )


def alone(path: Path, options: argparse.Namespace, target, example: np.ndarray) -> float:
    """The median of 200 calls in a fresh process of its own, as a script would take it."""
    code = (
        "import sys, time, numpy as np\n"
        "from edgekd.profile.device.runtimes import load\n"
        "s = load(sys.argv[1], sys.argv[2], threads=1, precision='f32')\n"
        "s.set_inputs(np.load(sys.argv[3])); t = []\n"
        "for _ in range(20): s.infer()\n"
        "for _ in range(200):\n"
        "    a = time.perf_counter(); s.infer(); t.append(time.perf_counter() - a)\n"
        "print(np.median(t))"
    )
    inputs = path.parent / "inputs.npy"
    np.save(inputs, example)
    command = [sys.executable, "-c", code, options.runtime, str(path), str(inputs)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
