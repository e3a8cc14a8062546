"""Stage `export`: teacher and student as deployable files, in `export/` of the run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from edgekd.artifacts import sha256_file
from edgekd.config.schema import Export
from edgekd.errors import StageError
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
    with context.progress.task("export", len(pairs)) as task:
        for role in get_args(Role):
            module = roles.load(context.run, role, context.base)
            card = context.run.card(role)
            weights = sha256_file(context.run.path / role / "model.safetensors")
            onnx = context.folder / f"{role}.onnx"
            source = Source(module, card, example, onnx, weights=weights)
            for format, exported, seconds in _exported(source, context.folder, config):
                files.append(_record(exported, role, format, seconds))
                task.advance(file=exported.path.name)
    if config.weights == "f16":
        started = time.monotonic()
        half = compress(context.folder / "student.xml", context.folder / "student-f16.xml")
        files.append(_record(half, "student", "openvino", time.monotonic() - started, "f16"))
    device = device_files(files, config, dataset.input, dataset.inputs.dtype.name, context.folder)
    ExportReport(files=tuple(files), device=device).write(context.folder / "export.json")


def _exported(
    source: Source, folder: Path, config: Export
) -> Iterator[tuple[str, Exported, float]]:
    """Every configured format, what was written and in how many seconds."""
    refused: StageError | None = None
    # ONNX first: the other formats are made from it.
    for format in dict.fromkeys(["onnx", *config.formats]):
        started = time.monotonic()
        try:
            exported = EXPORTERS.get(format)(source, folder, config)
        except StageError as error:
            if refused is not None:
                raise refused from None  # which says more: operator, module and line
            if format in config.formats:
                raise
            # OpenVINO may take from PyTorch what ONNX has no operators for.
            refused = error
            continue
        if format in config.formats:
            yield format, exported, time.monotonic() - started
    if "onnx" not in config.formats:
        for part in (source.onnx, source.onnx.with_name(f"{source.onnx.name}.data")):
            part.unlink(missing_ok=True)


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
