"""How long export and verification of a ResNet-50 (224×224) to ONNX and OpenVINO IR take.

    python benchmarks/export_time.py --threads 2 --runs 3 > benchmarks/results/export_time.md

Every configuration in a process of its own, in turns; its peak memory is the process's. Verified is
every file in its own runtime against PyTorch: 32 inputs in one batch, and 8 of them one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

CONFIGURATIONS: dict[str, dict[str, object]] = {
    "default": {},
    "producer: onnx": {"producer": "onnx"},
    "f16, folded, argmax, .ort": {
        "weights": "f16", "preprocessing": "fold", "output": "argmax", "ort": True,
    },
}  # fmt: skip
SAMPLES, SINGLE = 32, 8


def once(config: dict[str, object]) -> dict[str, object]:
    """Seconds of every step, and the peak memory, of this process."""
    import numpy as np
    import torch

    from benchmarks.resnet50 import resnet50
    from edgekd.config.schema import Export
    from edgekd.export.device import device_files
    from edgekd.export.exporter import EXPORTERS, Source
    from edgekd.export.formats.openvino import compress
    from edgekd.profile.device.memory import peak, reset_peak, resident
    from edgekd.profile.device.runtimes import load
    from edgekd.results import ExportedFile, InputSpec, ModelCard
    from edgekd.verify.parity import compare

    module = resnet50()
    settings = Export.model_validate(config)
    spec = InputSpec(
        shape=(3, 224, 224), scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    card = ModelCard(
        role="student", model="resnet50", args={}, input=spec, seed=0,
        classes=tuple(map(str, range(1000))), parameters=sum(p.numel() for p in module.parameters()),
    )  # fmt: skip
    inputs = torch.randn(SAMPLES, 3, 224, 224)
    reset_peak()
    before = resident()
    seconds: dict[str, tuple[float, float]] = {}

    def now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def timed(name: str, started: tuple[float, float]) -> None:
        """Wall and CPU seconds since then, added to what the step took before."""
        old, wall, cpu = seconds.get(name, (0.0, 0.0)), *now()
        seconds[name] = (old[0] + wall - started[0], old[1] + cpu - started[1])

    files, errors = [], []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Source(module, card, inputs[:8], folder / "student.onnx")
        whole = now()
        for format in ("onnx", "openvino"):
            started = now()
            made = EXPORTERS.get(format)(source, folder, settings)
            timed(f"export {format}", started)
            notes += made.notes
            files.append((format, "f32", made))
        started = now()
        if settings.weights == "f16":
            half = compress(folder / "student.xml", folder / "student-f16.xml")
            files.append(("openvino", "f16", half))
        records = [
            ExportedFile(
                role="student", format=format, variant=variant, path=f"export/{m.path.name}",
                files=(), size=0, seconds=0,
            )
            for format, variant, m in files
        ]  # fmt: skip
        device = device_files(records, settings, spec, "uint8", folder)
        if len(files) > 2 or device:
            timed("f16 and device files", started)
        started = now()
        with torch.inference_mode():
            reference = module(inputs).numpy()
        timed("verify", started)
        runtimes = {"onnx": "onnxruntime", "openvino": "openvino"}
        for format, _, made in files:
            started = now()
            session = load(runtimes[format], made.path, threads=1, precision="f32")
            found = session.run(inputs.numpy())[0]
            single = np.concatenate(
                [session.run(inputs[i : i + 1].numpy())[0] for i in range(SINGLE)]
            )
            for expected, answer in ((reference, found), (reference[:SINGLE], single)):
                errors.append(compare(expected, answer, where=made.path.name).max_relative)
            timed("verify", started)
        timed("all", whole)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {
        "seconds": seconds, "before": before, "peak": peak(), "errors": errors,
        "notes": notes, "sizes": sizes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once is not None:
        print(json.dumps(once(json.loads(options.once))))
        return
    found: dict[str, list[dict]] = {name: [] for name in CONFIGURATIONS}
    for _ in range(options.runs):
        for name, config in CONFIGURATIONS.items():
            answer = subprocess.run(
                [sys.executable, __file__, "--once", json.dumps(config)],
                env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
                stdout=subprocess.PIPE,
                check=True,
            )
            found[name].append(json.loads(answer.stdout.splitlines()[-1]))
            print(name, found[name][-1], file=sys.stderr)
    print(table(found, options))


def table(found: dict[str, list[dict]], options: argparse.Namespace) -> str:
    lines = [
        "# Export and verification of a ResNet-50, 224×224, to ONNX and OpenVINO IR",
        "",
        f"`python benchmarks/export_time.py --threads {options.threads} --runs {options.runs}`: wall "
        "time / CPU time of all threads, medians of processes in turns. On a machine that others use too the "
        "wall time is what they leave; the CPU time is about what one free core would take. Memory is the "
        "process's peak, and in parentheses what it was before, with PyTorch and the model loaded.",
        "",
        "| export | ONNX | IR | more files | verify | all | peak memory | largest error, f32 files |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        cells = [
            spread([run["seconds"].get(step) for run in runs])
            for step in ("export onnx", "export openvino", "f16 and device files", "verify", "all")
        ]
        peak = statistics.median(run["peak"] for run in runs) / 2**20
        before = statistics.median(run["before"] for run in runs) / 2**20
        error = max(max(run["errors"][:4]) for run in runs)
        lines.append(
            f"| {name} | {' | '.join(cells)} | {peak:.0f} MiB ({before:.0f}) | {error:.1e} |"
        )
    lines += ["", "What was decided:", ""]
    lines += [f"- {name}: {'; '.join(runs[0]['notes'])}" for name, runs in found.items()]
    last = found["f16, folded, argmax, .ort"][0]["sizes"]
    lines += ["", "| file | MiB |", "|---|---|"]
    lines += [f"| {name} | {size / 2**20:.2f} |" for name, size in last.items()]
    packages = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino")
    lines += [
        "",
        f"{cpu()}, {os.cpu_count()} CPUs, load when it ended "
        f"{', '.join(f'{x:.1f}' for x in os.getloadavg())}; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + ". Seed 0.",
    ]
    return "\n".join(lines)


def spread(values: list[tuple[float, float] | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    wall, busy = (statistics.median(part) for part in zip(*known, strict=True))
    return f"{wall:.1f} s / {busy:.1f} s"


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
