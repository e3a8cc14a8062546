"""A/A: how often two measurements of the very same file claim to differ.

    python benchmarks/aa.py [--repetitions 100] [--max-seconds 10] [--runtime onnxruntime openvino] [--write]

Runs of `edgekd profile`, one after another, each with the same file twice (as teacher and
as student, in turns). Compared are
- neighbouring runs: do the 95 % intervals of the same role's median lie apart; does the 95 % interval of
  the ratio (Welch, over launches) exclude 1;
- within a run: does the interval of the speedup of the file against itself exclude 1;
- the same questions to what one process alone would have said: the first launch of each run, with the
  bootstrap over its rounds that `profile.launches: 1` uses.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_ind

from benchmarks.gate_power import FORMAT, SHAPE, export
from edgekd.config.schema import Profile
from edgekd.models.resolve import build
from edgekd.pipeline.environment import environment
from edgekd.profile.measure import profile
from edgekd.profile.statistics import Samples, speedup, summarise
from edgekd.profile.targets import find
from edgekd.progress import Silent
from edgekd.results import ExportedFile, Interval, Role

ROLES: tuple[Role, ...] = ("teacher", "student")


@dataclass
class Outcome:
    """One run: by role the samples of the latency, and whether it was conclusive and undisturbed."""

    samples: dict[str, Samples]
    conclusive: bool
    noisy: bool
    seconds: float


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100, help="pairs of runs")
    parser.add_argument("--max-seconds", type=float, default=10.0, help="as profile.max_seconds")
    parser.add_argument("--runtime", choices=FORMAT, nargs="+", default=list(FORMAT))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    loads = [os.getloadavg()[0]]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for runtime in options.runtime:
            runs = measured(Path(folder), runtime, options, loads)
            rows += table_rows(runtime, runs)
    text = page(rows, options, loads)
    print(text)
    if options.write:
        (Path(__file__).parent / "results" / "aa.md").write_text(text, encoding="utf-8")


def measured(
    folder: Path, runtime: str, options: argparse.Namespace, loads: list[float]
) -> list[Outcome]:
    """The runs of the profile of one file, as teacher and as student."""
    settings = Profile(max_seconds=options.max_seconds)
    net = build("zoo:resnet20", {}, input_shape=SHAPE, classes=10, seed=0, base=folder)
    parts = export(folder, runtime, net, runtime)
    files = tuple(
        ExportedFile(
            role=role, format=FORMAT[runtime], path=str(parts[0]), files=tuple(map(str, parts)),
            size=sum(part.stat().st_size for part in parts), seconds=0.0,
        )
        for role in ROLES
    )  # fmt: skip
    example = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0)).numpy()
    target = find("local", Path.cwd()).model_copy(update={"runtimes": [runtime]})
    runs = []
    for _ in range(options.repetitions + 1):
        started = time.monotonic()
        report, samples, _ = profile(
            files, [target], settings, example, root=folder, progress=Silent()
        )
        both = {m.role: m for m in report.measurements}
        keys = {role: both[role].latency.samples for role in ROLES}
        runs.append(
            Outcome(
                {r: Samples(samples[k], samples[f"{k}/rounds"], samples[f"{k}/launches"])
                 for r, k in keys.items()},
                all(m.conclusive for m in report.measurements),
                any(m.noise for m in report.measurements),
                time.monotonic() - started,
            )
        )  # fmt: skip
        loads.append(os.getloadavg()[0])
        low, high = interval(runs[-1].samples["student"])
        print(
            f"{runtime} {len(runs)}: {low * 1e6:.1f} to {high * 1e6:.1f} µs, "
            f"{runs[-1].seconds:.0f} s, load {loads[-1]:.1f}",
            file=sys.stderr,
        )
    return runs


def table_rows(runtime: str, runs: list[Outcome]) -> list[str]:
    """A row for what profile says, and one for what one process alone would have said."""
    pairs = list(itertools.pairwise(runs))
    rows = []
    for name, view in (("launches", lambda s: s), ("one process", first_launch)):
        intervals = [{r: interval(view(run.samples[r])) for r in ROLES} for run in runs]
        apart = [
            max(a[r][0], b[r][0]) > min(a[r][1], b[r][1])
            for a, b in itertools.pairwise(intervals)
            for r in ROLES
        ]
        itself = [excludes_one(*(view(run.samples[r]) for r in ROLES)) for run in runs]
        ratio = "–"
        if name == "launches":
            ratio = share(
                [welch(a.samples[r], b.samples[r]) < 0.05 for a, b in pairs for r in ROLES]
            )
        width = np.median([(i[r][1] - i[r][0]) / np.mean(i[r]) for i in intervals for r in ROLES])
        rows.append(
            f"| {runtime} | {name} | {len(pairs)} | {share(apart)} | {ratio} | {share(itself)} | "
            f"±{width / 2:.1%} | {share([run.conclusive for run in runs])} | "
            f"{share([run.noisy for run in runs])} | {np.median([r.seconds for r in runs]):.0f} s |"
        )
    return rows


def first_launch(samples: Samples) -> Samples:
    """What the first process of a run did, alone."""
    mine = samples.launches == 0
    return Samples(samples.seconds[mine], samples.rounds[mine])


def interval(samples: Samples) -> Interval:
    """Of the median, as in the profile."""
    return summarise(samples, batch_size=1, steady=True, key="").p50_interval


def excludes_one(teacher: Samples, student: Samples) -> bool:
    """Whether the file is said to be faster or slower than itself."""
    low, high = speedup(teacher, student)[1]
    return low > 1 or high < 1


def welch(a: Samples, b: Samples) -> float:
    """The p-value of the difference of the launches' log-medians of two runs."""
    logs = [np.log(samples.each_launch(np.median)) for samples in (a, b)]
    return float(ttest_ind(*logs, equal_var=False).pvalue) if min(map(len, logs)) > 1 else 1.0


def share(flags: list[bool]) -> str:
    """In per cent of all."""
    return f"{sum(flags) / len(flags):.0%}"


def page(rows: list[str], options: argparse.Namespace, loads: list[float]) -> str:
    """The results as Markdown."""
    machine = environment()["machine"]
    return "\n".join(
        [
            "# A/A: the same file measured twice",
            "",
            f"`python benchmarks/aa.py --repetitions {options.repetitions} --max-seconds "
            f"{options.max_seconds:g} --write`",
            "",
            "ResNet-20 at 32×32, batch 1, one thread, `edgekd profile`. Claims that a file "
            "differs from itself, at a level of 5 %:",
            "",
            "| runtime | interval from | pairs of runs | medians' intervals apart | ratio of two runs "
            "excludes 1 | speedup within a run excludes 1 | median interval | conclusive | disturbed | "
            "time of a run |",
            "|---" * 10 + "|",
            *rows,
            "",
            "Both roles count in the columns about pairs. “Disturbed” runs said that they had to wait for a "
            "core for 5 % of the time or more.",
            "",
            f"Machine: {machine.get('cpu_model')}, {machine['cores']} cores, load average while measuring: "
            f"median {np.median(loads):.1f}, {min(loads):.1f} to {max(loads):.1f}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
