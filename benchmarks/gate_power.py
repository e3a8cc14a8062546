"""How often the latency gate cries wolf, and how often it lets a slower model through.

    python benchmarks/gate_power.py --comparison A/A --gates 200 [--runtime openvino] [--busy]
    python benchmarks/gate_power.py --table

Real files in a real runtime on this machine, as it is or beside a process that keeps one core busy:
- A/A: the same file as baseline and candidate;
- A/B+N: a candidate with a detour through N extra channels (0: one 1×1 convolution), a few per cent more
  work. How much slower it really is, is established over a long run first.
Against the rule that people use today: each model once, its median, fail above +5 %.
Every gate is one line of results/gate_power.jsonl; a run cut short goes on where it was, and counts the
gates of its own kind of CPU only. The table is made from these lines. The power curve replays the launches
of the long runs: gates at several limits, on launches drawn from them with replacement.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.config.schema import Budget, Export, Gate
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure
from edgekd.gate.launches import LOOKS, compare, launches
from edgekd.models.resolve import build
from edgekd.pipeline.environment import environment
from edgekd.profile.targets import find
from edgekd.results import InputSpec, ModelCard
from edgekd.statistics import wilson

SHAPE = (3, 32, 32)
LIMIT = 1.03
NAIVE_LIMIT = 1.05
TRUTH_LAUNCHES = 60
CURVE_LIMITS = (1.005, 1.01, 1.02, 1.03)
REPLAYS = 4000
# How a launch becomes one figure; before it was the ratio of both medians of all calls ("medians").
ESTIMATOR = "pairs"
# More processes than this want to run on the two cores: more than the one neighbour that is meant.
CROWDED = 3.0
# A real slow-down is to be caught within this many seconds of measuring.
SOON = 60
FORMAT = {"onnxruntime": "onnx", "openvino": "openvino"}
RESULTS = Path(__file__).parent / "results"
CPU = environment()["machine"].get("cpu_model")
COLUMNS = (
    "runtime", "comparison", "true ratio", "neighbour", "estimator", "gates", "pass", "fail",
    f"fail within {SOON} s",
    "inconclusive", "median time", "longest", "load average", "naive rule fails",
)  # fmt: skip


def main() -> None:
    """Run the gates that are still missing, or print the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparison", default="A/A", help="A/A, or A/B+N for N extra channels")
    parser.add_argument("--gates", type=int, default=200)
    parser.add_argument("--runtime", choices=FORMAT, default="onnxruntime")
    parser.add_argument("--busy", action="store_true", help="beside a process that loads one core")
    parser.add_argument(
        "--beside", help="which one: what runs here already; otherwise a loop is started"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "gate_power.jsonl")
    parser.add_argument("--table", action="store_true", help="only write results/gate_power.md")
    options = parser.parse_args()
    if not options.table:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), options)
    text = table(lines(options.results))
    print(text)
    if options.results.parent == RESULTS:
        (RESULTS / "gate_power.md").write_text(text, encoding="utf-8")


def lines(path: Path) -> list[dict]:
    """Everything that was measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(folder: Path, options: argparse.Namespace) -> None:
    """Append a line for the true ratio, where it is missing, and one for every missing gate."""
    target = find("local", Path.cwd())
    example = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).numpy()
    net = build("zoo:resnet20", {}, input_shape=SHAPE, classes=10, seed=0, base=folder)
    baseline = candidate = export(folder, "a", net, options.runtime)
    if options.comparison != "A/A":
        channels = int(options.comparison.partition("+")[2])
        candidate = export(folder, "b", Slower(net, channels), options.runtime)
    taken = launches(candidate, baseline, options.runtime, target, example, 1)
    source = (launch.latency for launch in taken)
    about = {"runtime": options.runtime, "comparison": options.comparison, "cpu": CPU}
    condition = {**about, "busy": options.busy, "estimator": ESTIMATOR}

    def keep(line: dict) -> None:
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, file=sys.stderr)

    known = lines(options.results)
    if not any(about.items() <= line.items() and "truth" in line for line in known):
        ratios = list(itertools.islice(source, TRUTH_LAUNCHES))
        half = 1.96 * np.std(ratios, ddof=1) / np.sqrt(len(ratios))
        bounds = [float(np.exp(np.mean(ratios) + shift)) for shift in (-half, half)]
        truth = float(np.exp(np.mean(ratios)))
        keep({**about, "truth": truth, "interval": bounds, "launches": ratios})
    done = sum(condition.items() <= line.items() and "verdict" in line for line in known)
    with neighbour(options.busy and not options.beside):
        for _ in range(options.gates - done):
            load = os.getloadavg()[0]
            word, value, interval, seconds = verdict(source)
            medians = [alone(p[0], options, target, example) for p in (candidate, baseline)]
            keep(
                {
                    **condition,
                    "verdict": word,
                    "ratio": value,
                    "interval": interval,
                    "seconds": seconds,
                    "naive_ratio": medians[0] / medians[1],
                    "load": load,
                    "beside": options.beside or ("a loop" if options.busy else None),
                    "time": time.time(),
                }
            )


class Slower(nn.Module):
    """A network after a detour through `channels` extra channels at full resolution."""

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.detour = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, 3, 1),
        ) if channels else nn.Conv2d(3, 3, 1)  # fmt: skip
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


def verdict(source) -> tuple[str, float, tuple[float, float], float]:
    """What the gate says of a sequence of launches, of what ratio, and the seconds it took."""
    started = time.monotonic()
    limit = Gate().max_seconds
    value, interval, conclusive = compare(
        source, lambda i: not i[0] <= LIMIT <= i[1], seconds=limit
    )
    figure = Figure("latency_vs_baseline", value, interval, "r", "local", conclusive)
    gate = Gate(budgets=[Budget(metric="latency_vs_baseline", max=f"{LIMIT} x")])
    return check_budgets(gate, [figure]).verdict, value, interval, time.monotonic() - started


def table(measured: list[dict]) -> str:
    """The results as Markdown: false alarms, all gates by CPU, the power curve."""
    text = [
        "# The latency gate: false alarms and misses",
        "",
        "`python benchmarks/gate_power.py --comparison C --gates N --runtime R [--busy]`, a line each; "
        "every gate is in `gate_power.jsonl`.",
        "",
        f"ResNet-20 at 32×32, batch 1, one thread, limit {LIMIT}. A/B+N has a detour through N extra "
        f"channels. The true ratio is the mean of {TRUTH_LAUNCHES} launches (95 % interval). In "
        "brackets: the 95 % Wilson interval of a share. The naive rule: each model once, 200 calls, "
        f"median, limit {NAIVE_LIMIT}. Machines with 2 cores, shared: the load average is that of the "
        f"moment before each gate (median); crowded: above {CROWDED:g}, beside tests and trainings. Without"
        " a neighbour of the benchmark's own (–) the machine was as it was, often with another's work. "
        "Gates on the EPYC end after gate.max_seconds (not the first ones); those on the Xeon after 24 "
        "launches. Estimator of a launch: the ratio of both medians, or the median of the ratios of blocks "
        "in pairs.",
        "",
        "## A/A, by what makes a launch one figure",
        "",
        "`pairs` is what the gate does; `medians` is what it did before, on two kinds of CPU.",
        "",
        "| estimator | runtime | neighbour | gates | false alarms | inconclusive | naive rule's |",
        "|---|---|---|---|---|---|---|",
    ]
    gates = [m for m in measured if "verdict" in m]
    for estimator in ("pairs", "medians"):
        text += false_alarms(
            [m for m in gates if (m["comparison"], m["estimator"]) == ("A/A", estimator)]
        )
    for cpu in sorted({m["cpu"] for m in measured}):
        here = [m for m in measured if m["cpu"] == cpu]
        text += [
            "",
            f"## {cpu}",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---" * len(COLUMNS) + "|",
        ]
        text += rows(here)
        text += curve([m for m in here if "launches" in m])
    return "\n".join([*text, ""])


def false_alarms(same: list[dict]) -> list[str]:
    """Lines about A/A gates of one estimator: by runtime and neighbour, and all together."""
    made = []
    for runtime in (*FORMAT, "both"):
        for busy in (False, True) if runtime in FORMAT else (None,):
            of = [
                m for m in same if runtime in (m["runtime"], "both") and busy in (m["busy"], None)
            ]
            if not of:
                continue
            words = [m["verdict"] for m in of]
            beside = {True: "one core busy", False: "–", None: "either"}[busy]
            made.append(
                f"| {of[0]['estimator']} | {runtime} | {beside} | {len(of)} | {share(words, 'fail')} | "
                f"{share(words, 'inconclusive')} | "
                f"{share([m['naive_ratio'] > NAIVE_LIMIT for m in of], True)} |"
            )
    return made


def rows(measured: list[dict]) -> list[str]:
    """A line for every comparison that was made on one kind of CPU."""
    truths = {(m["runtime"], m["comparison"]): m for m in measured if "truth" in m}
    gates = defaultdict(list)
    for m in measured:
        if "verdict" in m:
            key = m["runtime"], m["comparison"], m["busy"], m["load"] > CROWDED, m["estimator"]
            gates[key].append(m)
    made = []
    for (runtime, comparison, busy, crowded, estimator), found in sorted(gates.items()):
        truth = truths[runtime, comparison]
        low, high = truth["interval"]
        words = [m["verdict"] for m in found]
        seconds = [m["seconds"] for m in found]
        soon = [m["verdict"] == "fail" and m["seconds"] <= SOON for m in found]
        naive = [m["naive_ratio"] > NAIVE_LIMIT for m in found]
        made.append(
            f"| {runtime} | {comparison} | {truth['truth']:.3f} [{low:.3f}, {high:.3f}] | "
            f"{'one core busy' if busy else '–'}{', crowded' * crowded} | {estimator} | {len(found)} | "
            f"{share(words, 'pass')} | "
            f"{share(words, 'fail')} | {share(soon, True)} | {share(words, 'inconclusive')} | "
            f"{np.median(seconds):.0f} s | {max(seconds):.0f} s | "
            f"{np.median([m['load'] for m in found]):.1f} | {share(naive, True)} |"
        )
    return made


def curve(truths: list[dict]) -> list[str]:
    """Share of gates that fail, by the true ratio and the limit; nothing without launches."""
    if not truths:
        return []
    made = [
        "",
        f"Power: the share of {REPLAYS} replayed gates that fail, by their limit.",
        "",
        "| runtime | comparison | true ratio | "
        + " | ".join(f"limit {x}" for x in CURVE_LIMITS)
        + " |",
        "|---" * (3 + len(CURVE_LIMITS)) + "|",
    ]
    for truth in sorted(truths, key=lambda m: (m["runtime"], m["truth"])):
        fails = [f"{replayed(truth['launches'], limit):.1%}" for limit in CURVE_LIMITS]
        made.append(
            f"| {truth['runtime']} | {truth['comparison']} | {truth['truth']:.3f} | "
            + " | ".join(fails)
            + " |"
        )
    return made


def replayed(launched: list[float], limit: float) -> float:
    """The share of gates at `limit` that fail on launches drawn from those that were made."""
    rng = np.random.default_rng(0)
    fails = 0
    for _ in range(REPLAYS):
        drawn = iter(rng.choice(launched, LOOKS[-1][0]))
        _, interval, _ = compare(drawn, lambda i: not i[0] <= limit <= i[1])
        fails += interval[0] > limit
    return fails / REPLAYS


def share(values: list, of: object) -> str:
    """ "3/200 [0.5, 4.3] %"."""
    count = values.count(of)
    low, high = wilson(count, len(values))
    return f"{count}/{len(values)} [{100 * low:.1f}, {100 * high:.1f}] %"


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
