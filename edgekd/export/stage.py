"""Stage `export`: teacher and student as deployable files, in `export/` of the run folder."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from edgekd.export.exporter import EXPORTERS, Exported, Source
from edgekd.export.parts import model_parts
from edgekd.models.role import load
from edgekd.pipeline.stages import Context
from edgekd.results import ExportedFile, ExportReport, Role
from edgekd.teachers.teacher import kind_of


def run(context: Context) -> None:
    """Write every configured format of both models, and `export.json` about them."""
    config = context.config.export
    # Two samples, even of a single one: the exporter takes a batch of one for a constant.
    example = context.dataset.tensor(np.resize(context.dataset.train, 2))
    files: list[ExportedFile] = []
    kind = kind_of(context.run.card("teacher").model)
    roles = [role for role in get_args(Role) if role == "student" or kind.exports]
    if not kind.exports:
        context.progress.say(f"  the teacher only answers ({kind.kind}): it has no file to deploy")
    pairs = [(role, format) for role in roles for format in config.formats]
    with (
        tempfile.TemporaryDirectory(dir=context.folder, prefix=".onnx-") as scratch,
        context.progress.task("export", len(pairs)) as task,
    ):
        for role in roles:
            given = context.run.path / role / "model.onnx"
            module = None if given.is_file() else load(context.run, role, context.base)
            card = context.run.card(role)
            onnx_folder = context.folder if "onnx" in config.formats else Path(scratch)
            source = Source(module, card, example, onnx_folder / f"{role}.onnx")
            # ONNX first: the other formats are made from it.
            for format in dict.fromkeys(["onnx", *config.formats]):
                started = time.monotonic()
                folder = onnx_folder if format == "onnx" else context.folder
                if format == "onnx" and module is None:
                    exported = _copied(given, source.onnx)
                else:
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


def _copied(given: Path, path: Path) -> Exported:
    """A teacher that is an ONNX file already, under the name that exported files have."""
    import onnx

    parts = [
        path.parent / part.name.replace(given.name, path.name, 1) for part in model_parts(given)
    ]
    for source, target in zip(model_parts(given), parts, strict=True):
        shutil.copyfile(source, target)
    model = onnx.load(path, load_external_data=False)
    if len(parts) > 1:
        # Its weights are beside it under the new name.
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = entry.value.replace(given.name, path.name, 1)
        onnx.save(model, path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    return Exported(path, tuple(parts), opset=opset)
