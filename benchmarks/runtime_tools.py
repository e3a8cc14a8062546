"""How far edgekd's latencies are from those of the runtimes' own tools.

    python benchmarks/runtime_tools.py [--launches 15] [--blocks 4] [--seconds 0.1] [--write]

The same file, one thread, float32, batch 1, on this machine, against
- tight loops around the runtimes' C APIs, `ort_loop.c` and `ov_loop.c`, linked with the libraries of the
  onnxruntime and openvino packages: what `onnxruntime_perf_test` times, without even its bookkeeping;
- OpenVINO's `benchmark_app` (the program of the openvino package, in Python, whose own time is in its
  median).
A launch is a fresh process of each; both then take turns in short blocks (A B, B A, …). The ratio of
a launch is that of the medians of all calls; a line gives the median over launches.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from edgekd.config.schema import Export
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.pipeline.environment import environment
from edgekd.profile.device.intervals import quantile_interval
from edgekd.profile.device.limits import Confines
from edgekd.profile.device.measure import _worker
from edgekd.results import InputSpec, ModelCard

GOAL = 0.03
SUFFIX = {"onnxruntime": "onnx", "openvino": "xml"}
TOOLS = (("onnxruntime", "C loop"), ("openvino", "C loop"), ("openvino", "benchmark_app"))
MODELS: dict[str, tuple[str, dict[str, object], tuple[int, ...]]] = {
    "MLP 1024-512": ("mlp", {"hidden": [1024, 512]}, (1, 8, 8)),
    "DS-CNN": ("dscnn", {}, (1, 32, 32)),
    "ViT-small": ("vit", {}, (3, 32, 32)),
    "ResNet-20": ("resnet20", {}, (3, 32, 32)),
    "MobileNetV2 ×0.5": ("mobilenetv2", {}, (3, 32, 32)),
    "ResNet-56": ("resnet56", {}, (3, 32, 32)),
    "ResNet-110": ("resnet110", {}, (3, 32, 32)),
    "WRN-40-2": ("wrn40-2", {}, (3, 32, 32)),
    "VGG-13": ("vgg13", {}, (3, 32, 32)),
    "ResNet-32×4": ("resnet32x4", {}, (3, 32, 32)),
    "ResNet-32×4, 96×96": ("resnet32x4", {}, (3, 96, 96)),
}
Block = Callable[[float], np.ndarray]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launches", type=int, default=15)
    parser.add_argument("--blocks", type=int, default=4, help="of each, in a launch")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a block, at least 5 calls")
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekd-tools-") as folder:
        text = table(Path(folder), options)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / "runtime_tools.md"
        path.write_text(text, encoding="utf-8")


def export(folder: Path, network: str, args: dict[str, object], shape: tuple[int, ...]) -> None:
    """The model in both formats and one input in `folder`."""
    module = build(f"zoo:{network}", args, input_shape=shape, classes=10, seed=0, base=folder)
    card = ModelCard(
        role="student", model=f"zoo:{network}", args={}, classes=tuple("0123456789"), seed=0,
        input=InputSpec(shape=shape, scale=1, mean=(0,) * shape[0], std=(1,) * shape[0]),
        parameters=0,
    )  # fmt: skip
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    source = Source(module.eval(), card, inputs, folder / "student.onnx")
    for format in ("onnx", "openvino"):
        EXPORTERS.get(format)(source, folder, Export())
    np.save(folder / "inputs.npy", inputs[:1].numpy())
    inputs[:1].numpy().tofile(folder / "inputs.f32")


def compiled(folder: Path) -> dict[str, Path]:
    """The C loops by runtime, linked with the very libraries that are in the runtimes' packages."""
    import onnxruntime
    import openvino

    ort, ov = Path(onnxruntime.__file__).parent, Path(openvino.__file__).parent
    libraries = {
        "onnxruntime": ("ort_loop", ort / "capi", "libonnxruntime.so", []),
        "openvino": ("ov_loop", ov / "libs", "libopenvino_c.so", ["-I", ov / "include"]),
    }
    programs = {}
    for runtime, (name, place, library, options) in libraries.items():
        [found] = place.glob(f"{library}.*")
        program, source = folder / name, Path(__file__).with_name(f"{name}.c")
        # Libraries that the first one needs lie beside it.
        paths = [f"-Wl,-rpath,{place}", f"-Wl,-rpath-link,{place}"]
        if runtime == "onnxruntime":
            # Its name inside the file is not that of the file.
            (folder / f"{library}.1").symlink_to(found)
            paths.append(f"-Wl,-rpath,{folder}")
        subprocess.run(
            [
                "gcc",
                "-O2",
                "-Wall",
                "-Werror",
                *map(str, [*options, "-o", program, source, found, *paths]),
            ],
            check=True,
        )
        programs[runtime] = program
    return programs


@contextlib.contextmanager
def edgekd_block(folder: Path, runtime: str) -> Iterator[Block]:
    """The process in which edgekd measures, and its blocks."""
    path = next(folder.glob(f"*.{SUFFIX[runtime]}"))
    model = {"id": "m", "runtime": runtime, "path": str(path), "threads": 1, "precision": "f32"}
    with _worker(model, Confines()) as worker:
        worker.ask(do="start", inputs=str(folder / "inputs.npy"), **worker.start)
        worker.ask(do="load", **worker.load)
        worker.ask(do="bind", batch_size=1)
        yield worker.block


@contextlib.contextmanager
def c_block(folder: Path, runtime: str, program: Path, expected: np.ndarray) -> Iterator[Block]:
    """The process of a C loop; its first answer must be the expected one."""
    shape = np.load(folder / "inputs.npy").shape
    model = next(folder.glob(f"*.{SUFFIX[runtime]}"))
    arguments = [model, folder / "inputs.f32", folder / "output.f32", "1", *shape]
    process = subprocess.Popen(
        [program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    told, answers = process.stdin, process.stdout
    assert told is not None
    assert answers is not None

    def block(seconds: float) -> np.ndarray:
        told.write(f"{seconds}\n".encode())
        told.flush()
        count = int(answers.readline())
        return np.frombuffer(answers.read(8 * count), "<i8") / 1e9

    try:
        block(0.01)
        answer = np.fromfile(folder / "output.f32", np.float32)
        if not np.allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()):
            raise SystemExit(f"the C loop answers {answer[:3]}, not {expected[:3]}")
        yield block
    finally:
        told.close()
        process.wait(60)


def app_block(folder: Path) -> Block:
    """One run of benchmark_app per block; its median, as often as it made calls."""
    model = next(folder.glob("*.xml"))
    shape = ",".join(map(str, np.load(folder / "inputs.npy").shape))
    program = shutil.which("benchmark_app") or Path(sys.executable).with_name("benchmark_app")
    command = [
        program, "-m", model, "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", "1",
        "-infer_precision", "f32", "-api", "sync", "-inference_only=true",
        "-data_shape", f"[{shape}]",
    ]  # fmt: skip
    known: dict[str, float] = {}

    def block(seconds: float) -> np.ndarray:
        calls = max(5, round(seconds / known["median"])) if known else 5
        done = subprocess.run(
            [*map(str, command), "-niter", str(calls)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""},
        ).stdout  # fmt: skip
        assert re.search(r"INFERENCE_PRECISION_HINT: <Type: 'float32'>", done), done
        told = re.search(r"Median: +([\d.]+) ([um]s)", done)
        assert told is not None, done
        known["median"] = float(told[1]) * {"us": 1e-6, "ms": 1e-3}[told[2]]
        return np.full(calls, known["median"])

    return block


def launch(ours: Block, theirs: Block, blocks: int, seconds: float) -> tuple[float, float]:
    """Medians of edgekd's calls and of the tool's, from blocks in turn after one for warm-up."""
    ours(seconds), theirs(seconds)
    found: dict[Block, list[np.ndarray]] = {ours: [], theirs: []}
    for i in range(blocks):
        for block in (ours, theirs) if i % 2 == 0 else (theirs, ours):
            found[block].append(block(seconds))
    a, b = (float(np.median(np.concatenate(found[block]))) for block in (ours, theirs))
    return a, b


def table(folder: Path, options: argparse.Namespace) -> str:
    """The results as Markdown."""
    programs = compiled(folder)
    load = [os.getloadavg()[0]]
    rows, met, near = [], 0, 0
    for number, name in enumerate(options.models):
        place = folder / f"model{number}"
        place.mkdir()
        export(place, *MODELS[name])
        expected = answer(place)
        for runtime, tool in TOOLS:
            pairs = []
            # benchmark_app starts anew for every block: fewer and longer ones, and fewer launches.
            share = 4 if tool == "benchmark_app" else 1
            for _ in range(options.launches if share == 1 else -(-options.launches * 3 // 5)):
                with contextlib.ExitStack() as stack:
                    ours = stack.enter_context(edgekd_block(place, runtime))
                    theirs = (
                        stack.enter_context(c_block(place, runtime, programs[runtime], expected))
                        if tool == "C loop"
                        else app_block(place)
                    )
                    first = theirs(0.01)
                    # A block has five calls of the slowest model too.
                    seconds = max(share * options.seconds, 5 * float(np.median(first)))
                    pairs.append(launch(ours, theirs, max(2, options.blocks // share), seconds))
            load.append(os.getloadavg()[0])
            rows.append(row(name, runtime, tool, np.array(pairs)))
            met += rows[-1].endswith("yes |")
            near += abs(float(np.median(np.array(pairs)[:, 0] / np.array(pairs)[:, 1])) - 1) <= GOAL
            print(rows[-1], file=sys.stderr, flush=True)
        shutil.rmtree(place)
    machine = environment()
    versions = machine["packages"]
    return "\n".join(
        [
            "# edgekd's latencies beside those of the runtimes' own tools",
            "",
            f"`python benchmarks/runtime_tools.py --launches {options.launches} "
            f"--blocks {options.blocks} --seconds {options.seconds} --write`",
            "",
            f"Same file, one thread, float32, batch 1. {options.launches} launches of fresh processes, "
            f"in each {options.blocks} blocks of {options.seconds} s in turn. Medians; the ratio is "
            f"edgekd's over the tool's, with the 95 % interval of its median over launches. "
            f"Overhead is the difference per call. "
            f"Within {GOAL:.0%}: {near} of {len(rows)} medians, {met} whole intervals. edgekd calls from "
            "Python, and small models read about 1 µs more than in the C loops; benchmark_app, also in "
            "Python, about 3 µs more.",
            "",
            "| model | runtime | tool | edgekd | tool | ratio | overhead per call | within 3 % |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Machine: {machine['machine'].get('cpu_model')}, {machine['machine']['cores']} cores, "
            f"load average while measuring {min(load):.1f} to {max(load):.1f} "
            f"(a quiet machine is at 1); onnxruntime {versions['onnxruntime']}, "
            f"openvino {versions['openvino']}.",
            "",
        ]
    )


def answer(folder: Path) -> np.ndarray:
    """What the Python package answers to the input."""
    from edgekd.profile.device.runtimes import load

    session = load("onnxruntime", next(folder.glob("*.onnx")), threads=1, precision="f32")
    return session.run(np.load(folder / "inputs.npy"))[0].ravel()


def row(name: str, runtime: str, tool: str, pairs: np.ndarray) -> str:
    """One line of the table."""
    ratios = pairs[:, 0] / pairs[:, 1]
    ratio, interval = float(np.median(ratios)), quantile_interval(ratios, 0.5)
    ours, theirs = np.median(pairs, axis=0)
    bounds = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return (
        f"| {name} | {runtime} | {tool} | {shown(ours)} | {shown(theirs)} | {ratio:.3f}{bounds} | "
        f"{np.median(pairs[:, 0] - pairs[:, 1]) * 1e6:+.1f} µs | "
        f"{verdict(ratio, interval)} |"
    )


def verdict(ratio: float, interval: tuple[float, float] | None) -> str:
    """Yes or no where the whole interval says so."""
    inside = [abs(value - 1) <= GOAL for value in interval or (ratio,)]
    if all(inside):
        return "yes"
    outside = interval is None or interval[0] > 1 + GOAL or interval[1] < 1 - GOAL
    return "no" if outside else "undecided"


def shown(seconds: float) -> str:
    """As people read it."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    main()
