"""INT8 against true float32 in the same runtime: ResNet-50, 224×224, one thread, batch 1, both producers.

    python benchmarks/int8_speed.py [--samples 300] [--launches 5] > benchmarks/results/int8_speed.md

Every quantization in a process of its own, which says its seconds and its peak memory. Latencies through
edgekd's device runner: fresh processes that take turns in short blocks, several launches; ratios with the
95 % interval over launches. OpenVINO is told to execute float32 files in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

FORMATS = {"onnx": ("onnxruntime", ".onnx"), "openvino": ("openvino", ".xml")}
BACKENDS = ("nncf", "onnxruntime")


def export(folder: Path) -> None:
    import torch

    from benchmarks.resnet50 import resnet50
    from edgekd.config.schema import Export
    from edgekd.export.exporter import EXPORTERS, Source
    from edgekd.results import InputSpec, ModelCard

    module = resnet50()
    card = ModelCard(
        role="student", model="resnet50", args={}, seed=0,
        input=InputSpec(shape=(3, 224, 224), scale=1, mean=(0, 0, 0), std=(1, 1, 1)),
        classes=tuple(map(str, range(1000))), parameters=sum(p.numel() for p in module.parameters()),
    )  # fmt: skip
    inputs = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    source = Source(module, card, inputs, folder / "student.onnx")
    for format in FORMATS:
        EXPORTERS.get(format)(source, folder, Export())


def once(
    folder: Path, format: str, by: Literal["nncf", "onnxruntime"], count: int
) -> dict[str, object]:
    """Quantize in this process: seconds (wall and CPU) and memory before and at most."""
    import numpy as np

    from edgekd.profile.device.memory import peak, reset_peak, resident
    from edgekd.quantize.arithmetic import arithmetic
    from edgekd.quantize.backend import Source, prepare
    from edgekd.quantize.recipes import Recipe

    suffix = FORMATS[format][1]
    random = np.random.default_rng(0)
    samples = list(random.standard_normal((count, 1, 3, 224, 224), np.float32))
    recipe = Recipe(name="benchmark", backend=by)
    before = resident()
    reset_peak()
    wall, cpu = time.monotonic(), time.process_time()
    source = Source(format, folder / f"student{suffix}", folder / "student.onnx")
    made = prepare(source, recipe, samples, arithmetic(recipe))
    made.write(folder / f"{by}{suffix}")
    return {
        "wall": time.monotonic() - wall, "cpu": time.process_time() - cpu,
        "before": before, "peak": peak(), "layers": len(made.layers),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the files here; those there are used")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        folder, format, by = options.once
        print(json.dumps(once(Path(folder), format, by, options.samples)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "student.xml").exists():
            export(folder)
        loads = [os.getloadavg()[0]]
        told = {}
        for format in FORMATS:
            for by in BACKENDS:
                command = [sys.executable, __file__, "--samples", str(options.samples), "--once"]
                # Calibration runs with as many threads as there are cores.
                environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
                answer = subprocess.run(
                    [*command, str(folder), format, by],
                    stdout=subprocess.PIPE, check=True, env=environment,
                )  # fmt: skip
                told[format, by] = json.loads(answer.stdout.splitlines()[-1])
                print(format, by, told[format, by], file=sys.stderr)
                loads.append(os.getloadavg()[0])
        print(table(folder, told, loads, options))


def table(folder: Path, told: dict, loads: list[float], options: argparse.Namespace) -> str:
    import numpy as np

    from edgekd.profile.statistics import speedup
    from edgekd.profile.targets import find
    from edgekd.quantize.sensitivity import logits
    from edgekd.quantize.speed import in_turns, median, place

    target = find("local", folder)
    fresh = np.random.default_rng(2).standard_normal((8, 3, 224, 224), np.float32)
    lines = [
        "# INT8 against float32: ResNet-50, 224×224, batch 1, one thread",
        "",
        f"`python benchmarks/int8_speed.py --samples {options.samples} --launches {options.launches}`: "
        "median latency; how many times faster than float32 in the same runtime, with the 95 % interval "
        "over launches; the INT8 file by the float32 one; signal by noise of the logits of 8 other inputs "
        "(the network is untrained: noise as input, batch statistics of noise). Goals: 2.5 times faster, "
        "0.27 of the size, 120 s.",
        "",
        "| runtime | quantized by | float32 | INT8 | times faster | file | SNR "
        "| quantization, wall / CPU | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for format, (runtime, suffix) in FORMATS.items():

        def parts(name: str, suffix: str = suffix) -> tuple[Path, ...]:
            path = folder / f"{name}{suffix}"
            return (path,) if suffix == ".onnx" else (path, path.with_suffix(".bin"))

        where = place([target], format)
        assert where is not None
        names = ("student", *BACKENDS)
        samples = in_turns(
            {name: parts(name) for name in names}, where, fresh,
            launches=options.launches, seconds=3.0,
        )  # fmt: skip
        loads.append(os.getloadavg()[0])
        reference = logits(format, parts("student")[0], fresh)
        sizes = {name: sum(p.stat().st_size for p in parts(name)) for name in names}
        for by in BACKENDS:
            ratio, (low, high) = speedup(samples["student"], samples[by])
            noise = ((logits(format, parts(by)[0], fresh) - reference) ** 2).sum()
            snr = 10 * math.log10((reference**2).sum() / noise)
            spent = told[format, by]
            lines.append(
                f"| {runtime} | {by} | {1e3 * median(samples['student']):.1f} ms | "
                f"{1e3 * median(samples[by]):.1f} ms | {ratio:.2f} ({low:.2f} to {high:.2f}) | "
                f"{sizes[by] / sizes['student']:.3f} | {snr:.1f} dB | "
                f"{spent['wall']:.0f} s / {spent['cpu']:.0f} s | {spent['peak'] / 2**20:.0f} MiB "
                f"({spent['before'] / 2**20:.0f}) |"
            )
    packages = ("onnx", "onnxruntime", "openvino", "nncf", "torch")
    lines += [
        "",
        "Peak memory is that of the process that quantizes; in parentheses what it was before, with the "
        f"{options.samples} samples loaded ({options.samples * 3 * 224 * 224 * 4 / 2**20:.0f} MiB).",
        "",
        f"{cpu()}, {os.cpu_count()} CPUs shared with others, load {min(loads):.1f} to {max(loads):.1f}; "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + ". Seeds 0, 1, 2.",
    ]
    return "\n".join(lines)


def cpu() -> str:
    from edgekd.profile.device.environment import describe

    machine = describe()
    return f"{machine['cpu_model']} ({', '.join(machine['isa'])})"


if __name__ == "__main__":
    main()
