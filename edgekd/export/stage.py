"""Stage `export`: teacher and student as deployable files, in `export/` of the run folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from edgekd.artifacts import sha256_file
from edgekd.export.device import device_files
from edgekd.export.exporter import EXPORTERS, Exported, Source
from edgekd.export.formats.openvino import compress
from edgekd.models import role as roles
from edgekd.pipeline.stages import Context
from edgekd.results import ExportedFile, ExportReport, Role, Variant

# Real samples that choices are checked with; at least two, for the exporter takes a batch of one for
# a constant.
_SAMPLES = 8


def run(context: Context) -> None:
    """Write every configured format of both models, device files, and `export.json` about them."""
    config, dataset = context.config.export, context.dataset
    example = dataset.tensor(np.resize(dataset.train, _SAMPLES))
    files: list[ExportedFile] = []
    pairs = [(role, format) for role in get_args(Role) for format in config.formats]
    with (
        tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch,
        context.progress.task("export", len(pairs)) as task,
    ):
        for role in get_args(Role):
            module = roles.load(context.run, role, context.base)
            card = context.run.card(role)
            weights = sha256_file(context.run.path / role / "model.safetensors")
            onnx_folder = context.folder if "onnx" in config.formats else Path(scratch)
            onnx = onnx_folder / f"{role}.onnx"
            source = Source(module, card, example, onnx, weights=weights)
            # ONNX first: the other formats are made from it.
            for format in dict.fromkeys(["onnx", *config.formats]):
                started = time.monotonic()
                folder = onnx_folder if format == "onnx" else context.folder
                exported = EXPORTERS.get(format)(source, folder, config)
                if format not in config.formats:
                    continue
                task.advance(file=exported.path.name)
                files.append(_record(exported, role, format, time.monotonic() - started))
    if config.weights == "f16":
        started = time.monotonic()
        half = compress(context.folder / "student.xml", context.folder / "student-f16.xml")
        files.append(_record(half, "student", "openvino", time.monotonic() - started, "f16"))
    device = device_files(files, config, dataset.input, dataset.inputs.dtype.name, context.folder)
    ExportReport(files=tuple(files), device=device).write(context.folder / "export.json")


def _record(
    exported: Exported, role: Role, format: str, seconds: float, variant: Variant = "f32"
) -> ExportedFile:
    return ExportedFile(
        role=role,
        format=format,
        variant=variant,
        path=f"export/{exported.path.name}",
        files=tuple(f"export/{file.name}" for file in exported.files),
        size=sum(file.stat().st_size for file in exported.files),
        seconds=round(seconds, 3),
        opset=exported.opset,
        producer=exported.producer,
        notes=exported.notes,
    )
