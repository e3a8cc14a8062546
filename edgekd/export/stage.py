"""Stage `export`: teacher and student as deployable files, in `export/` of the run folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.artifacts import sha256_file, write_text
from edgekd.config.schema import Export
from edgekd.data import logmel
from edgekd.data.tokenizer import FILE as TOKENIZER
from edgekd.data.tokenizer import free_length
from edgekd.errors import StageError
from edgekd.export.device import device_files
from edgekd.export.dimensions import dynamic_axes
from edgekd.export.exporter import EXPORTERS, Exported, Source
from edgekd.export.formats.openvino import compress
from edgekd.export.parts import model_parts
from edgekd.models import role as roles
from edgekd.pipeline.stages import Context
from edgekd.results import ExportedFile, ExportReport, Role, Variant
from edgekd.teachers.teacher import Teacher, kind_of, load

# Real samples that choices are checked with; at least two, for the exporter takes a batch of one for
# a constant.
_SAMPLES = 8


def run(context: Context) -> None:
    """Write every configured format of both models, device files, and `export.json` about them.

    For networks of token ids also `tokenizer.json`, which makes them of texts; for those of sound
    `logmel.json` and `logmel.py`, which make their features.
    """
    config, dataset = context.config.export, context.dataset
    example = dataset.tensor(np.resize(dataset.train, _SAMPLES))
    files: list[ExportedFile] = []
    kind = kind_of(context.run.card("teacher").model)
    names = [role for role in get_args(Role) if role == "student" or kind.exports]
    if not kind.exports:
        context.progress.say(f"  the teacher only answers ({kind.kind}): it has no file to deploy")
    pairs = [(role, format) for role in names for format in config.formats]
    with context.progress.task("export", len(pairs)) as task:
        for role in names:
            given = context.run.path / role / "model.onnx"
            if given.is_file():
                module, weights = _asked(load(context.run, context.base, dataset)), given
            else:
                module = roles.load(context.run, role, context.base)
                weights = context.run.path / role / "model.safetensors"
            card = context.run.card(role)
            onnx = context.folder / f"{role}.onnx"
            source = Source(module, card, example, onnx, weights=sha256_file(weights))
            for format, exported, seconds in _exported(source, context.folder, config, given):
                files.append(_record(exported, role, format, seconds))
                task.advance(file=exported.path.name)
    if config.weights == "f16":
        started = time.monotonic()
        half = compress(context.folder / "student.xml", context.folder / "student-f16.xml")
        files.append(_record(half, "student", "openvino", time.monotonic() - started, "f16"))
    if dataset.tokenizer is not None:
        free = 1 in dynamic_axes({"input": example}, config)["input"]
        tokenizer = free_length(dataset.tokenizer) if free else dataset.tokenizer
        write_text(context.folder / TOKENIZER, tokenizer)
    if dataset.front_end is not None:
        write_text(context.folder / "logmel.json", dataset.front_end)
        write_text(context.folder / "logmel.py", Path(logmel.__file__).read_text(encoding="utf-8"))
    device = device_files(files, config, dataset.input, dataset.inputs.dtype.name, context.folder)
    ExportReport(files=tuple(files), device=device).write(context.folder / "export.json")


def _exported(
    source: Source, folder: Path, config: Export, given: Path | None = None
) -> Iterator[tuple[str, Exported, float]]:
    """Every configured format, what was written and in how many seconds.

    `given` is the model's ONNX file where it came as one.
    """
    refused: StageError | None = None
    # ONNX first: the other formats are made from it.
    for format in dict.fromkeys(["onnx", *config.formats]):
        started = time.monotonic()
        try:
            if format == "onnx" and given is not None and given.is_file():
                exported = _copied(given, source.onnx)
            else:
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


def _asked(teacher: Teacher) -> nn.Module:
    """A teacher that is a file, where a module is wanted to compare with."""

    class Asked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(teacher.outputs(x.numpy()))

    return Asked().eval()


def _copied(given: Path, path: Path) -> Exported:
    """A teacher that is an ONNX file already, under the name that exported files have."""
    import onnx

    parts = model_parts(given)
    targets = [path.parent / part.name.replace(given.name, path.name, 1) for part in parts]
    for source, target in zip(parts, targets, strict=True):
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
    return Exported(path, tuple(targets), opset=opset, producer=model.producer_name or None)


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
