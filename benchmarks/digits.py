"""The digits example over several seeds: teacher, distilled student, the same student undistilled.

    python benchmarks/digits.py [--seeds 5] [--write]

Accuracies are those of the deployed ONNX files on the test split, through ONNX Runtime. The first
seed is a cold `edgekd compress --example digits` in a fresh process and folder, timed.
`--write` replaces benchmarks/results/digits.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import edgekd
from edgekd.cli.line import EXAMPLES
from edgekd.pipeline.environment import environment
from edgekd.pipeline.run import Run
from edgekd.progress import Lines

UNDISTILLED = ("distill.alpha=1", "distill.methods=[]")


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = table(Path(folder), options.seeds)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / "digits.md"
        path.write_text(text, encoding="utf-8")


def table(folder: Path, seeds: int) -> str:
    """The results as Markdown."""
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "edgekd",
        "compress",
        "--example",
        "digits",
        "--set",
        "history=null",
        "--out",
    ]
    subprocess.run([*command, str(folder / "seed0")], check=True, stdout=subprocess.DEVNULL)
    cold = time.monotonic() - started
    started = time.monotonic()
    subprocess.run([*command, str(folder / "seed0")], check=True, stdout=subprocess.DEVNULL)
    again = time.monotonic() - started

    rows = []
    for seed in range(seeds):
        run = verified(folder / f"seed{seed}", seed)
        plain = verified(folder / f"undistilled{seed}", seed, *UNDISTILLED)
        rows.append(
            (deployed(run, "teacher"), deployed(run, "student"), deployed(plain, "student"))
        )
    profile = Run.open(folder / "seed0").profile
    cards = {role: Run.open(folder / "seed0").card(role) for role in ("teacher", "student")}
    return render(rows, profile, cards, cold, again)


def verified(path: Path, seed: int, *overrides: str) -> Run:
    """A run up to its deployed files' accuracy."""
    return edgekd.verify(
        EXAMPLES / "digits.yaml", out=path, overrides=[f"seed={seed}", *overrides], progress=Lines()
    )


def deployed(run: Run, role: str) -> float:
    """Accuracy in percent of the ONNX file in ONNX Runtime."""
    (file,) = (f for f in run.verify.files if f.role == role and f.runtime == "onnxruntime")
    return 100 * file.accuracy.value


def render(rows, profile, cards, cold: float, again: float) -> str:
    """Markdown with the figures the README quotes."""
    machine = environment()
    columns = list(zip(*rows, strict=True))
    mean = [statistics.mean(column) for column in columns]
    spread = [statistics.stdev(column) for column in columns]
    first3 = [statistics.mean(column[:3]) for column in columns]
    lines = [
        "# The digits example",
        "",
        f"`python benchmarks/digits.py --seeds {len(rows)} --write`",
        "",
        "Test accuracy (%) of the deployed ONNX files in ONNX Runtime; the split is fixed, the seed "
        "sets initial weights, order and views.",
        "",
        "| seed | teacher | student, distilled | same student, not distilled |",
        "|---|---|---|---|",
        *(f"| {i} | {t:.2f} | {s:.2f} | {u:.2f} |" for i, (t, s, u) in enumerate(rows)),
        "| mean ± s.d. | "
        + " | ".join(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, spread, strict=True))
        + " |",
        "",
        f"Drop against the teacher, mean of 3 seeds: {first3[0] - first3[1]:.2f} points. "
        f"Gain over the undistilled student, mean of {len(rows)} seeds: {mean[1] - mean[2]:.2f} points.",
        "",
        f"Parameters: {cards['teacher'].parameters:,} and {cards['student'].parameters:,} "
        f"({cards['teacher'].parameters / cards['student'].parameters:.0f} times fewer).",
        "",
        "| runtime | teacher p50 | student p50 | speed-up [95 % interval] | file size ratio |",
        "|---|---|---|---|---|",
    ]
    for c in profile.comparisons:
        p50 = {m.role: m.latency.p50 * 1e6 for m in profile.measurements if m.runtime == c.runtime}
        low, high = c.speedup_interval
        lines.append(
            f"| {c.runtime} | {p50['teacher']:.1f} µs | {p50['student']:.1f} µs | "
            f"{c.speedup:.1f} [{low:.1f}, {high:.1f}] | {c.compression:.1f} |"
        )
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items() if v)
    lines += [
        "",
        "Batch 1, one thread, float32, measured.",
        "",
        f"Cold run, from nothing to the report: {cold:.0f} s. Second run, nothing to do: {again:.1f} s.",
        "",
        f"Machine: {machine['machine'].get('cpu_model')}, {machine['machine']['cores']} cores; {packages}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
