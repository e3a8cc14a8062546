"""How often the accuracy gate cries wolf, and how often it lets a worse model through.

    EDGEKD_DATA=FOLDER python benchmarks/gate_accuracy.py [--gates 2000] [--write]

`accuracy_vs_baseline ≤ 0 points` on a fixed number of test samples, decided many times:
- simulated: paired answers of which the true share of lost and gained samples is known;
- real: an MLP trained on MNIST against itself trained with another seed, and against itself with noise on
  its weights. The true drop is that on all 10,000 test images; every gate sees a random part of them.
Against the rules that people use today: fail when the count is lower at all, or lower by half a point.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edgekd import api
from edgekd.config.schema import Budget, Gate
from edgekd.data.resolve import load
from edgekd.distill.trainer import predict
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure
from edgekd.models import role as roles
from edgekd.pipeline.environment import environment
from edgekd.pipeline.line import run_line
from edgekd.progress import Lines
from edgekd.statistics import paired_difference, wilson

GATE = Gate(budgets=[Budget(metric="accuracy_vs_baseline", max="0 points")])
CONFIG = {
    "data": {"source": "idx:$EDGEKD_DATA/mnist"},
    "teacher": {
        "model": "zoo:mlp", "args": {"hidden": [128]},
        "train": {"epochs": 3, "learning_rate": 0.05, "batch_size": 128, "threads": 1},
    },
}  # fmt: skip
# Shares of samples that only the baseline, and only the candidate, gets right.
SIMULATED = [
    (0.01, 0.01),
    (0.003, 0.003),
    (0.011, 0.01),
    (0.0125, 0.01),
    (0.015, 0.01),
    (0.02, 0.01),
]
NOISES = (0.05, 0.1, 0.15, 0.2)
SIZES = (1000, 5000)
# Lost and gained samples of one gate.
Draw = Callable[[np.random.Generator, int], tuple[int, int]]


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=2000, help="for each line of the table")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = table(options.gates)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / "gate_accuracy.md"
        path.write_text(text, encoding="utf-8")


def table(gates: int) -> str:
    """The results as Markdown."""
    random = np.random.default_rng(0)
    rows = []
    for name, truth, draw in [*simulated(), *real()]:
        for size in SIZES:
            found = [judge(*draw(random, size), size) for _ in range(gates)]
            shares = " | ".join(share([f[i] for f in found]) for i in range(3))
            rows.append(f"| {name} | {100 * truth:.2f} | {size} | {shares} |")
    machine = environment()["machine"]
    return "\n".join(
        [
            "# The accuracy gate: false alarms and misses",
            "",
            f"`python benchmarks/gate_accuracy.py --gates {gates} --write`",
            "",
            "Share of gates that fail, with its 95 % Wilson interval in per cent. `accuracy_vs_baseline ≤ 0 "
            "points` fails when the 95 % interval of the paired difference is above 0.",
            "",
            "| candidate | true drop, points | samples | edgekd | lower at all | lower by 0.5 points |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Machine: {machine.get('cpu_model')}; torch {torch.__version__}, seed 0.",
            "",
        ]
    )


def simulated() -> list[tuple[str, float, Draw]]:
    """Candidates of which the truth is given."""

    def of(lost: float, gained: float) -> Draw:
        def draw(random: np.random.Generator, size: int) -> tuple[int, int]:
            counts = random.multinomial(size, [lost, gained, 1 - lost - gained])
            return int(counts[0]), int(counts[1])

        return draw

    return [
        (f"simulated, {lost:.2%} lost, {gained:.2%} gained", lost - gained, of(lost, gained))
        for lost, gained in SIMULATED
    ]


def real() -> list[tuple[str, float, Draw]]:
    """MNIST models: the same, another seed, and noise on the weights (share of each weight's layer's RMS)."""
    base = answers(0)
    candidates = {"MNIST, the same model": base, "MNIST, another seed": answers(1)}
    candidates |= {f"MNIST, {n:.0%} noise on the weights": answers(0, n) for n in NOISES}

    def of(right: np.ndarray) -> Draw:
        def draw(random: np.random.Generator, size: int) -> tuple[int, int]:
            seen = random.choice(len(base), size, replace=False)
            lost, gained = base[seen] & ~right[seen], right[seen] & ~base[seen]
            return int(lost.sum()), int(gained.sum())

        return draw

    return [(name, float(base.mean() - r.mean()), of(r)) for name, r in candidates.items()]


def answers(seed: int, noise: float = 0.0) -> np.ndarray:
    """Which of the test images a trained model gets right, (10000,) bool."""
    config, base = api.resolve(CONFIG, [f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        run, _ = run_line(
            config, base=base, out=Path(folder) / "run", until="teacher", force=None,
            progress=Lines(), command="benchmarks/gate_accuracy.py",
        )  # fmt: skip
        module = roles.load(run, "teacher", base)
    dataset = load(config.data, config.data.seed, base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = noise * parameter.square().mean().sqrt()
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        logits = predict(module, dataset, dataset.test).numpy()
    right: np.ndarray = logits.argmax(1) == dataset.labels[dataset.test]
    return right


def judge(lost: int, gained: int, size: int) -> tuple[bool, bool, bool]:
    """Whether edgekd fails it, and the two naive rules."""
    drop = (lost - gained) / size
    figure = Figure("accuracy_vs_baseline", drop, paired_difference(lost, gained, size), "any")
    return check_budgets(GATE, [figure]).verdict == "fail", drop > 0, drop > 0.005


def share(values: list[bool]) -> str:
    """ "4.2 [3.4, 5.1]" in per cent."""
    low, high = wilson(sum(values), len(values))
    return f"{100 * sum(values) / len(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
