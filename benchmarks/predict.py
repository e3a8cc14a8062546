"""How well latency is predicted for networks that the cost model has never seen.

    python benchmarks/predict.py [--folder runs/predict] [--write]

Calibrates this machine with the suite (random networks), then predicts every network of
`predict_networks.py` (the zoo, in many widths and resolutions) in both runtimes and measures it with the
same code. Measured networks are kept in the folder: what was interrupted goes on where it was, and a
network that others disturbed is measured again, at most four times.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import predict_networks
from edgekd.artifacts import read_json, write_json
from edgekd.config.units import format_quantity
from edgekd.profile.predict.calibrate import TURNS, Files, calibrate, calmer, measure
from edgekd.profile.predict.forecast import forecast
from edgekd.profile.predict.model import scored
from edgekd.profile.predict.records import Calibration
from edgekd.profile.targets import Target, find
from edgekd.progress import Lines
from edgekd.statistics import wilson

GOAL = 0.95  # within ±10 %
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}


@dataclass(frozen=True)
class Row:
    """One network in one runtime; seconds."""

    network: str
    runtime: str
    measured: float
    predicted: float
    interval: tuple[float, float]
    disturbed: bool

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.interval[0] <= self.measured <= self.interval[1]


def main() -> None:
    """Run it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/predict"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    target = find("local", Path.cwd())
    calibration, spent = calibrated(target, options.folder)
    files = predict_networks.export_all(options.folder / "zoo")
    networks = [Files(name, shape, paths) for name, (shape, paths) in files.items()]
    load = [os.getloadavg()[0]]
    told = measured(target, networks, options.folder / "measured")
    load.append(os.getloadavg()[0])
    rows = [row for n in networks for row in judged(n, told[n.name], target, calibration)]
    write_json(options.folder / "rows.json", [row.__dict__ for row in rows])
    text = table(rows, calibration, spent, load)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / "predict.md"
        path.write_text(text, encoding="utf-8")


def calibrated(target: Target, folder: Path) -> tuple[Calibration, float]:
    """The calibration and the seconds that it took, all runs together."""
    path, clock = folder / "local.cost.json", folder / "calibration.json"
    before = read_json(clock)["seconds"] if clock.is_file() else 0.0
    started = time.monotonic()
    found = scored(calibrate(target, cache=folder / "suite", progress=Lines()))
    found.write(path)
    seconds = before + time.monotonic() - started
    write_json(clock, {"seconds": seconds, "load": os.getloadavg()[0]})
    return Calibration.read(path), seconds


def measured(target: Target, networks: list[Files], folder: Path) -> dict[str, dict]:
    """What was measured of every network."""
    told: dict[str, dict] = {}
    for turn in range(TURNS):
        for network in networks:
            path = folder / f"{network.name}.json"
            before = read_json(path) if path.is_file() else None
            if before is not None and (before["turns"] > turn or not any(before["disturbed"])):
                told[network.name] = before
                continue
            print(f"measure {network.name}", flush=True)
            said = measure(target, network, operators=False) | {"turns": turn + 1}
            told[network.name] = said if before is None else calmer(before, said)
            write_json(path, told[network.name])
    return told


def judged(network: Files, told: dict, target: Target, calibration: Calibration) -> list[Row]:
    """Prediction beside measurement, by runtime."""
    rows = []
    for observation, disturbed in zip(told["observations"], told["disturbed"], strict=True):
        runtime = observation["runtime"]
        path = network.paths[FORMATS[runtime]]
        estimate = forecast(path, target, runtime, calibration, where="benchmark").estimate
        rows.append(
            Row(network.name, runtime, observation["seconds"], estimate.seconds, estimate.interval,
                disturbed)
        )  # fmt: skip
    return rows


def table(rows: list[Row], calibration: Calibration, spent: float, load: list[float]) -> str:
    """The results as Markdown."""
    lines = [
        "# Predicted against measured latency",
        "",
        f"{len({row.network for row in rows})} networks of the zoo, none of them in the suite of "
        f"{len({o.network for o in calibration.observations})} random networks that the cost model is fitted "
        f"to; batch 1, {calibration.threads} thread, {calibration.precision}. "
        f"CPU: {calibration.device.get('cpu_model')}, {calibration.device.get('usable_cores')} cores; "
        + ", ".join(f"{name} {version}" for name, version in calibration.versions.items())
        + f". Calibrated {calibration.measured} in {spent / 60:.0f} min; load average while the zoo was "
        f"measured: {load[0]:.1f} to {load[1]:.1f} on {calibration.device.get('usable_cores')} cores.",
        "",
        "The measured latency is the first decile over blocks of 30 ms of the block's median or, where "
        "less, its CPU time per call; a disturbed network (the blocks' median more than 4 % above it) is "
        f"measured up to {TURNS} times. What stayed disturbed is counted in the last column.",
        "",
        "| runtime | networks | within ±5 % | within ±10 % | within ±20 % | median error | mean error | "
        "in the 95 % interval | interval, median half-width | disturbed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for runtime in (*FORMATS, "both"):
        mine = [row for row in rows if runtime in ("both", row.runtime)]
        errors = np.array([abs(row.error) for row in mine])
        shares = " | ".join(
            share(int((errors <= limit).sum()), len(mine)) for limit in (0.05, 0.1, 0.2)
        )
        widths = [math.sqrt(row.interval[1] / row.interval[0]) - 1 for row in mine]
        lines.append(
            f"| {runtime} | {len(mine)} | {shares} | {np.median(errors):.1%} | {errors.mean():.1%} | "
            f"{share(sum(row.covered for row in mine), len(mine))} | ±{np.median(widths):.0%} | "
            f"{sum(row.disturbed for row in mine)} |"
        )
    missed = [
        runtime
        for runtime in FORMATS
        if np.mean([abs(r.error) <= 0.1 for r in rows if r.runtime == runtime]) < GOAL
    ]
    if missed:
        lines += [
            "",
            f"The goal ({GOAL:.0%} within ±10 %) is not reached in {' and '.join(missed)}.",
        ]
    lines += ["", "Every network, the worst first (d: disturbed, !: outside its interval):", ""]
    lines += [
        "| network | runtime | measured | predicted | interval | error | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -abs(math.log1p(row.error))):
        low, high = (format_quantity(bound, "time") for bound in row.interval)
        marks = ("d" if row.disturbed else "") + ("" if row.covered else "!")
        lines.append(
            f"| {row.network.replace('_', ' ')} | {row.runtime} | {format_quantity(row.measured, 'time')} | "
            f"{format_quantity(row.predicted, 'time')} | {low} – {high} | {row.error:+.1%} | {marks} |"
        )
    return "\n".join(lines) + "\n"


def share(count: int, total: int) -> str:
    """A share with its Wilson interval."""
    low, high = wilson(count, total)
    return f"{count / total:.0%} [{low:.0%}, {high:.0%}]"


if __name__ == "__main__":
    main()
