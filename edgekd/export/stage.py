"""Stage `export`: teacher and student as deployable files, in `export/` of the run folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models import role as roles
from edgekd.pipeline.stages import Context
from edgekd.results import ExportedFile, ExportReport, Role


def run(context: Context) -> None:
    """Write every configured format of both models, and `export.json` about them."""
    config = context.config.export
    # Two samples, even of a single one: the exporter takes a batch of one for a constant.
    example = context.dataset.tensor(np.resize(context.dataset.train, 2))
    files: list[ExportedFile] = []
    pairs = [(role, format) for role in get_args(Role) for format in config.formats]
    with (
        tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch,
        context.progress.task("export", len(pairs)) as task,
    ):
        for role in get_args(Role):
            module = roles.load(context.run, role, context.base)
            card = context.run.card(role)
            onnx_folder = context.folder if "onnx" in config.formats else Path(scratch)
            source = Source(module, card, example, onnx_folder / f"{role}.onnx")
            # ONNX first: the other formats are made from it.
            for format in dict.fromkeys(["onnx", *config.formats]):
                started = time.monotonic()
                folder = onnx_folder if format == "onnx" else context.folder
                exported = EXPORTERS.get(format)(source, folder, config)
                if format not in config.formats:
                    continue
                task.advance(file=exported.path.name)
                files.append(
                    ExportedFile(
                        role=role,
                        format=format,
                        path=f"export/{exported.path.name}",
                        files=tuple(f"export/{file.name}" for file in exported.files),
                        size=sum(file.stat().st_size for file in exported.files),
                        seconds=round(time.monotonic() - started, 3),
                        opset=exported.opset,
                    )
                )
    ExportReport(files=tuple(files)).write(context.folder / "export.json")
