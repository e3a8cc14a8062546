"""ONNX through the torch.export-based exporter."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.artifacts import atomic_files, write_text
from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export import metadata
from edgekd.export.dimensions import check_free, dynamic_axes, named_shapes
from edgekd.export.exporter import Exported, Source, exporter
from edgekd.export.failure import explain
from edgekd.export.log import quiet
from edgekd.export.simplify import simplify
from edgekd.export.trace import trace

if TYPE_CHECKING:
    import onnx
    import torch

# protobuf cannot hold a message of 2 GiB or more.
_MAX_SINGLE_FILE = 2**31 - 2**20


@exporter("onnx")
def export_onnx(source: Source, folder: Path, config: Export) -> Exported:
    """Write `<role>.onnx`, with the source's names of inputs and outputs, by default "logits".

    With external data the weights are in `<role>.onnx.data` beside it. Raises StageError that names
    the operator, the module and the line that cannot be exported; the exporter's whole log is then
    in `<role>.onnx.log`. UsageError for sizes in `export.dynamic` that there are not.
    """
    path = folder / f"{source.card.role}.onnx"
    dynamic_axes(source.inputs, config)
    with quiet() as captured:
        tried: Exception | None = None
        try:
            try:
                program = _convert(trace(source, config), source, config)
            except Exception as error:
                tried = error
                # Left to the exporter, which knows more ways to trace a module.
                program = _convert(source.module, source, config)
        except Exception as error:
            raise _failed(tried or error, source, path, captured.getvalue()) from None
        _check_named(program, source, config)
        return _save(program, source, path, config)


def _check_named(program: torch.onnx.ONNXProgram, source: Source, config: Export) -> None:
    """Raises StageError where the exporter made a constant of a size that should be free."""
    axes = dynamic_axes(source.inputs, config)
    for value in program.model.graph.inputs:
        for axis, name in axes.get(str(value.name), {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                raise StageError(
                    f"the {source.card.role} works for one {name} only, {value.shape[axis]}: "
                    "its code makes a constant of it",
                    where=source.card.model,
                    fix="compute shapes from x.shape in the model"
                    + (", or take it out of export.dynamic" if axis else ""),
                )


def _convert(
    program: torch.nn.Module | torch.export.ExportedProgram, source: Source, config: Export
) -> torch.onnx.ONNXProgram:
    import torch

    made = torch.onnx.export(
        program,
        tuple(source.inputs.values()),
        dynamo=True,
        dynamic_shapes=named_shapes(source.inputs, config),
        input_names=list(source.inputs),
        output_names=list(source.outputs),
        opset_version=config.opset,
        verbose=False,
    )
    assert made is not None
    return made


def _save(program: torch.onnx.ONNXProgram, source: Source, path: Path, config: Export) -> Exported:
    size = sum(p.numel() * p.element_size() for p in source.module.parameters())
    external = size >= _MAX_SINGLE_FILE if config.external_data == "auto" else config.external_data
    if not external and size >= _MAX_SINGLE_FILE:
        raise StageError(
            f"its weights take {size:,} bytes; one ONNX file holds less than 2 GiB",
            where=source.card.model,
            fix="set export.external_data to true or auto",
        )
    notes: list[str] = []
    program.model.metadata_props.update(metadata.describe(source))
    names = (path.name, f"{path.name}.data") if external else (path.name,)
    with atomic_files(path.parent, names) as temporary:
        if size >= _MAX_SINGLE_FILE:
            # onnxslim works on one message in memory, which cannot hold it.
            program.save(temporary / path.name, external_data=True)
        else:
            model = program.model_proto
            if config.simplify:
                model, note = simplify(model, source)
                notes.append(note)
            save_onnx(model, temporary / path.name, external=external)
        check_free(temporary / path.name, source, config)
    return Exported(
        path,
        tuple(path.with_name(name) for name in names),
        opset=program.model.opset_imports.get(""),
        producer="torch.onnx",
        notes=tuple(notes),
    )


def save_onnx(model: onnx.ModelProto, path: Path, *, external: bool) -> None:
    """Write the model; with `external` its weights go to PATH.data."""
    import onnx

    onnx.save_model(
        model,
        path,
        save_as_external_data=external,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        # Shapes and axes stay inside: ONNX Runtime reads them before it opens other files.
        size_threshold=1024,
    )
    if external:
        # onnx lets nobody but the owner read it, whatever the umask.
        path.with_name(f"{path.name}.data").chmod(path.stat().st_mode)


def _failed(error: Exception, source: Source, path: Path, printed: str) -> StageError:
    log = path.with_name(f"{path.name}.log")
    write_text(log, printed + "".join(traceback.format_exception(error)))
    failure = explain(error, source.module)
    where = f"{source.card.model}, {failure.place}" if failure.place else source.card.model
    return StageError(
        f"the {source.card.role} cannot be exported to ONNX: {failure.reason}",
        where=where,
        fix="; ".join(filter(None, (failure.advice, f"the exporter's log is {log}"))),
    )
