"""Architectures × {ONNX, IR} × {fp32, fp16, INT8} × {ONNX Runtime, OpenVINO}: the same function, how
large, how fast?

    python benchmarks/export_matrix.py [--only NAME …] [--report]

Every network is trained shortly on the digits (1257 training and 540 test images, brought to the
network's own input shape), exported, quantized and compared with PyTorch on the whole test split.
Speeds are ratios of interleaved blocks to the fp32 file in the same runtime: one thread, batch 1.
Finished networks are kept in results/export_matrix.jsonl and skipped; delete the file to start
again. Networks of torchvision and timm take part where those packages can be imported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.config.schema import Export, Verify
from edgekd.errors import EdgekdError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.export.formats.openvino import compress
from edgekd.models.network import NETWORKS
from edgekd.profile.device.environment import describe
from edgekd.profile.device.runtimes import RUNTIMES, Session
from edgekd.quantize.backend import quantize
from edgekd.quantize.recipes import Recipe
from edgekd.results import InputSpec, ModelCard
from edgekd.statistics import wilson
from edgekd.verify.parity import compare
from edgekd.verify.sessions import one_line, open_session, outputs

RESULTS = Path(__file__).parent / "results"
Inputs = dict[str, Tensor]
_FORMATS = ("onnx", "openvino")
_VARIANTS = ("f32", "f16", "int8")
_RUNTIMES = ("onnxruntime", "openvino")
_SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
_BATCH = 32
_CALIBRATION = 64
_BLOCKS = 21
_BLOCK_SECONDS = 0.004


@dataclass(frozen=True)
class Architecture:
    """A network for ten classes and the shape of one input of it; () are token ids with a mask."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    transformer: bool = False
    epochs: int = 4
    learning_rate: float = 2e-3


def _zoo(name: str, shape: tuple[int, ...], **more: Any) -> Architecture:
    return Architecture(
        f"zoo:{name}", shape, lambda: NETWORKS.get(name).build(shape or (64,), 10), **more
    )


def _torchvision(name: str) -> Architecture:
    def build() -> nn.Module:
        # PyPI's wheel is built for CUDA: beside a CPU build of PyTorch its operators for detection
        # do not load, and declaring their shapes fails. No classifier uses them.
        key = "torchvision._meta_registrations"
        sys.modules.setdefault(key, ModuleType(key))
        import torchvision

        module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10)
        return module

    return Architecture(f"torchvision:{name}", (3, 32, 32), build, epochs=3)


def _timm(name: str, *, size: int = 32, transformer: bool = False, **more: Any) -> Architecture:
    def build() -> nn.Module:
        key = "torchvision._meta_registrations"
        sys.modules.setdefault(key, ModuleType(key))
        import timm

        module: nn.Module = timm.create_model(name, num_classes=10, **more)
        return module

    return Architecture(f"timm:{name}", (3, size, size), build, transformer, epochs=3)


SMALL = (1, 16, 16)
ARCHITECTURES = (
    _zoo("mlp", (64,)), _zoo("resnet20", SMALL), _zoo("wrn16-2", SMALL), _zoo("vgg8", SMALL),
    _zoo("mobilenetv2", SMALL), _zoo("shufflenetv1", SMALL), _zoo("shufflenetv2", SMALL),
    _zoo("efficientnet", SMALL), _zoo("convnext", SMALL), _zoo("vit", SMALL, transformer=True),
    _zoo("dscnn", SMALL, epochs=20, learning_rate=5e-3), _zoo("conv1d", (1, 64), epochs=12),
    _zoo("lstm", (1, 8, 8), epochs=20), _zoo("gru", (1, 8, 8), epochs=20),
    _zoo("bert", (), transformer=True, epochs=20, learning_rate=1e-3),
    _torchvision("mobilenet_v3_small"), _torchvision("squeezenet1_1"), _timm("lcnet_050"),
    _timm("mobilevit_xxs", size=64), _timm("deit_tiny_patch16_224", transformer=True, img_size=32, depth=4),
    _timm("repghostnet_050"), _torchvision("resnet18"), _torchvision("mnasnet0_5"),
    _torchvision("shufflenet_v2_x0_5"), _timm("efficientvit_b0"), _timm("edgenext_xx_small"),
    _torchvision("regnet_x_400mf"),
)  # fmt: skip


@dataclass(frozen=True)
class Digits:
    """The digits in one network's shape: inputs by name, and labels."""

    train: Inputs
    train_labels: Tensor
    test: Inputs
    test_labels: Tensor


def digits(shape: tuple[int, ...], limit: int | None = None) -> Digits:
    """Images are enlarged bilinearly, signals and vectors are their pixels row by row.

    For () the pixels are token ids 1 to 17, of which up to the last 16 are hidden by the mask.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    random = np.random.default_rng(0)
    order = random.permutation(len(found.target))[:limit]
    raw = torch.from_numpy(found.images[order].astype(np.float32))
    labels = torch.from_numpy(found.target[order].astype(np.int64))
    split = int(0.7 * len(order))
    if not shape:
        length = torch.from_numpy(random.integers(48, 65, len(order)))
        mask = (torch.arange(64) < length[:, None]).long()
        inputs = {"tokens": (raw.flatten(1).long() + 1) * mask, "mask": mask}
    else:
        x = (raw[:, None] - 4.884) / 6.017
        if len(shape) == 3:
            x = F.interpolate(x, shape[1:], mode="bilinear").expand(-1, shape[0], -1, -1)
        inputs = {"input": x.reshape(-1, *shape).contiguous()}
    return Digits(
        {k: v[:split] for k, v in inputs.items()},
        labels[:split],
        {k: v[split:] for k, v in inputs.items()},
        labels[split:],
    )


def train(module: nn.Module, data: Digits, epochs: int, learning_rate: float) -> None:
    """AdamW with a cosine, batches of 32; leaves the module in evaluation mode."""
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate)
    steps = epochs * (len(data.train_labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_labels)).split(_BATCH):
            if len(batch) < _BATCH:
                continue
            logits = module(*(x[batch] for x in data.train.values()))
            optimizer.zero_grad()
            F.cross_entropy(logits, data.train_labels[batch]).backward()
            optimizer.step()
            schedule.step()
    module.eval()


def measure(arch: Architecture, folder: Path, limit: int | None = None) -> dict[str, Any]:
    """One network's figures: those of PyTorch, and `cells` by format, variant and runtime.

    A cell that fails or cannot be has a `reason`.
    """
    torch.manual_seed(0)
    started = time.monotonic()
    data = digits(arch.shape, limit)
    module = arch.build()
    train(module, data, arch.epochs, arch.learning_rate)
    trained = time.monotonic() - started
    with torch.inference_mode():
        reference = module(*data.test.values()).numpy()
    labels = data.test_labels.numpy()
    paths, reasons = _files(arch, module, data, folder)
    inputs = {name: x.numpy() for name, x in data.test.items()}
    cells = []
    for format in _FORMATS:
        for variant in _VARIANTS:
            for runtime in _RUNTIMES:
                cell: dict[str, object] = {"format": format, "variant": variant, "runtime": runtime}
                known = RUNTIMES[runtime].formats + RUNTIMES[runtime].also
                if format not in known:
                    cell["reason"] = "ONNX Runtime does not open OpenVINO's IR"
                    cell["possible"] = False
                elif (format, variant) not in paths:
                    cell["reason"] = reasons[format, variant]
                else:
                    base = paths.get((format, "f32"))
                    try:
                        cell |= _cell(paths[format, variant], base, runtime, variant, inputs,
                                      reference, labels)  # fmt: skip
                    except EdgekdError as error:
                        cell["reason"] = str(error)
                    except Exception as error:
                        cell["reason"] = one_line(error)
                cells.append(cell)
    return {
        "name": arch.name,
        "shape": arch.shape,
        "parameters": sum(p.numel() for p in module.parameters()),
        "accuracy": float((reference.argmax(1) == labels).mean()),
        "samples": len(labels),
        "epochs": arch.epochs,
        "train_seconds": round(trained, 1),
        "seconds": round(time.monotonic() - started, 1),
        "cells": cells,
    }


def _files(
    arch: Architecture, module: nn.Module, data: Digits, folder: Path
) -> tuple[dict[tuple[str, str], Path], dict[tuple[str, str], str]]:
    """What could be made, by format and variant, and why the others could not."""
    card = ModelCard(
        role="student", model=arch.name, args={}, classes=tuple("0123456789"), seed=0,
        input=InputSpec(shape=arch.shape, scale=1, mean=(0,), std=(1,)), parameters=0,
    )  # fmt: skip
    example = {name: x[:4] for name, x in data.train.items()}
    source = Source(module, card, example, folder / "student.onnx")
    recipe = Recipe(
        name="matrix", samples=_CALIBRATION, model_type="transformer" if arch.transformer else None
    )
    count = min(_CALIBRATION, len(data.train_labels))
    samples = [{name: x[i : i + 1].numpy() for name, x in data.train.items()} for i in range(count)]
    paths: dict[tuple[str, str], Path] = {}
    reasons: dict[tuple[str, str], str] = {}

    def make(format: str, variant: str, work: Callable[[Path], object]) -> None:
        name = "student" if variant == "f32" else f"student-{variant}"
        path = folder / f"{name}{_SUFFIX[format]}"
        if variant != "f32" and (format, "f32") not in paths:
            reasons[format, variant] = "there is no fp32 file to make it from"
            return
        try:
            work(path)
            paths[format, variant] = path
        except Exception as error:
            reasons[format, variant] = one_line(error)

    whole = folder / "student.onnx"
    export = Export(producer="onnx")
    make("onnx", "f32", lambda _: EXPORTERS.get("onnx")(source, folder, export))
    make("openvino", "f32", lambda _: EXPORTERS.get("openvino")(source, folder, export))
    make("onnx", "f16", lambda path: _half_onnx(whole, path))
    make("openvino", "f16", lambda path: compress(folder / "student.xml", path))
    make("onnx", "int8", lambda path: quantize("onnx", whole, path, recipe, samples))
    make(
        "openvino", "int8",
        lambda path: quantize("openvino", folder / "student.xml", path, recipe, samples, onnx=whole),
    )  # fmt: skip
    return paths, reasons


def _half_onnx(source: Path, path: Path) -> None:
    """The ONNX file computing in float16, with ONNX Runtime's converter; inputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def _cell(
    path: Path, base: Path | None, runtime: str, variant: str, inputs: dict[str, np.ndarray],
    reference: np.ndarray, labels: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    where = f"{path.name} in {runtime}"
    session = open_session(runtime, path)
    found = outputs(session, inputs, 128, where=where)
    errors = compare(reference, found, where=where)
    few = [outputs(session, _first(inputs, 8), batch, where=where) for batch in (1, 7)]
    apart = max(compare(reference[:8], x, where=where).max_relative for x in few)
    error, tolerance = max(errors.max_relative, apart), _tolerance(variant)
    agreed = round(errors.agreement * len(labels))
    cell: dict[str, object] = {
        "error": error,
        "snr": errors.snr,
        "agreement": errors.agreement,
        "agreement_interval": wilson(agreed, len(labels)),
        "accuracy": float((found.argmax(1) == labels).mean()),
        "size": sum(p.stat().st_size for p in (path, path.with_suffix(".bin")) if p.is_file()),
        "tolerance": tolerance,
        "passed": error <= tolerance,
    }
    if base is not None and variant != "f32":
        one = open_session(runtime, base)
        cell["base_size"] = sum(
            p.stat().st_size for p in (base, base.with_suffix(".bin")) if p.is_file()
        )
        cell["speed"] = _speed(one, session, _first(inputs, 1))
    if not cell["passed"]:
        cell["reason"] = (
            f"an error of {error:.2g} of the largest logit is more than {tolerance:g}; the answers agree "
            f"in {errors.agreement:.1%} of the samples"
        )
    return cell


def _tolerance(variant: str) -> float:
    settings = Verify()
    by_variant = {"f16": settings.f16_tolerance, "int8": settings.int8_tolerance}
    return by_variant.get(variant, settings.tolerance)


def _speed(base: Session, other: Session, x: dict[str, np.ndarray]) -> float:
    """How many times faster `other` is: the median over interleaved pairs of blocks."""
    ratios = []
    for session in (base, other):
        session.set_inputs(x)
        session.infer()
    calls = max(1, round(_BLOCK_SECONDS / max(_block(base, 3), _block(other, 3))))
    for _ in range(_BLOCKS):
        ratios.append(_block(base, calls) / _block(other, calls))
    return statistics.median(ratios)


def _block(session: Session, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        session.infer()
    return (time.perf_counter() - started) / calls


def _first(inputs: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: x[:count] for name, x in inputs.items()}


def importable(arch: Architecture) -> str | None:
    """None, or why the network's package cannot be imported."""
    try:
        arch.build()
    except ImportError as error:
        return one_line(error)
    return None


def report(rows: list[dict[str, Any]]) -> str:
    """The result file: what holds for each kind of cell, then every cell."""
    head = _HEAD.format(
        count=len(rows),
        samples=_CALIBRATION,
        blocks=_BLOCKS,
        machine=describe()["cpu_model"],
        tolerances=", ".join(f"{_NAMES[v]} {_tolerance(v):g}" for v in _VARIANTS),
        versions=_versions(),
    )
    lines = [head, "", *_summary(rows), "", "## Every cell", "", _EVERY, ""]
    lines += [
        "| network | PyTorch | file | runtime | error | SNR | same answer | accuracy | size | speed | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for cell in row["cells"]:
            if cell.get("possible", True):
                lines.append(_row(row, cell))
    lines += ["", "IR in ONNX Runtime: it does not open it, for all networks and precisions."]
    return "\n".join(lines) + "\n"


_EVERY = (
    "Error: max|Δlogit| / max|logit|, the worst of the test split, of batch 1 and of batch 7. Size and "
    "speed: to the fp32 file of the same format, in the same runtime."
)
_HEAD = """# Export matrix: {count} networks × formats × precisions × runtimes

    python benchmarks/export_matrix.py

Trained shortly on the digits (seed 0; AdamW; 540 test images at the network's own input shape), so
that answers and accuracy mean something; not tuned, and some have hardly begun to learn. fp16: ONNX
computing in float16 (ONNX Runtime's converter), IR with float16 weights. IR made from ONNX. INT8:
NNCF, {samples} calibration samples, preset mixed, SmoothQuant for transformers. One thread; speeds are
medians of ratios of {blocks} interleaved pairs of blocks at batch 1, on a machine ({machine}) that
others kept busy: below 1.2 × and above 0.8 × they say little.
Tolerances: {tolerances} of the largest logit. {versions}."""


def _versions() -> str:
    from importlib.metadata import version

    names = ("torch", "onnx", "onnxruntime", "openvino", "nncf")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| file | runtime | within tolerance | median error | worst error | least agreement | "
        "mean accuracy − PyTorch's | median size | median speed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for format in _FORMATS:
        for variant in _VARIANTS:
            for runtime in _RUNTIMES:
                found = [
                    (row, cell)
                    for row in rows
                    for cell in row["cells"]
                    if (cell["format"], cell["variant"], cell["runtime"])
                    == (format, variant, runtime)
                ]
                ran = [(r, c) for r, c in found if "error" in c]
                if not ran:
                    continue
                errors = [c["error"] for _, c in ran]
                drop = statistics.mean(c["accuracy"] - r["accuracy"] for r, c in ran)
                sizes = [c["size"] / c["base_size"] for _, c in ran if "base_size" in c]
                speeds = [c["speed"] for _, c in ran if "speed" in c]
                lines.append(
                    f"| {_NAMES[format]} {_NAMES[variant]} | {_RUNTIME_NAMES[runtime]} "
                    f"| {sum(c['passed'] for _, c in ran)} of {len(found)} "
                    f"| {statistics.median(errors):.1e} | {max(errors):.1e} "
                    f"| {min(c['agreement'] for _, c in ran):.1%} | {100 * drop:+.2f} points "
                    f"| {_times(sizes)} | {_times(speeds)} |"
                )
    return lines


_NAMES = {"onnx": "ONNX", "openvino": "IR", "f32": "fp32", "f16": "fp16", "int8": "INT8"}
_RUNTIME_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def _times(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ×" if values else "–"


def _row(row: dict[str, Any], cell: dict[str, Any]) -> str:
    name = row["name"]
    file = f"{_NAMES[cell['format']]} {_NAMES[cell['variant']]}"
    start = f"| {name} | {row['accuracy']:.1%} | {file} | {_RUNTIME_NAMES[cell['runtime']]} "
    if "error" not in cell:
        return f"{start}| – | – | – | – | – | – | {cell['reason']} |"
    low, high = cell["agreement_interval"]
    size = f"{cell['size'] / 1024:,.0f} KiB"
    if "base_size" in cell:
        size = f"{cell['size'] / cell['base_size']:.2f} ×"
    speed = f"{cell['speed']:.2f} ×" if "speed" in cell else "1"
    snr = "∞" if cell["snr"] is None else f"{cell['snr']:.0f} dB"
    return (
        f"{start}| {cell['error']:.1e} | {snr} | {cell['agreement']:.1%} ({low:.1%} to {high:.1%}) "
        f"| {cell['accuracy']:.1%} | {size} | {speed} | {cell.get('reason', 'pass')} |"
    )


def main() -> None:
    """Measure what is not in the results yet, and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS / "export_matrix.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    done = {row["name"] for row in rows}
    for arch in ARCHITECTURES if not options.report else ():
        if arch.name in done or (options.only and arch.name not in options.only):
            continue
        missing = importable(arch)
        if missing:
            print(f"{arch.name}: left out, {missing}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="edgekd-matrix-") as folder:
            row = measure(arch, Path(folder))
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        failed = [c["reason"] for c in row["cells"] if "reason" in c and c.get("possible", True)]
        print(f"{row['name']}: {row['accuracy']:.1%}, {row['seconds']} s, {failed}", flush=True)
    order = {arch.name: position for position, arch in enumerate(ARCHITECTURES)}
    rows.sort(key=lambda row: order.get(row["name"], len(order)))
    (RESULTS / "export_matrix.md").write_text(report(rows))


if __name__ == "__main__":
    main()
