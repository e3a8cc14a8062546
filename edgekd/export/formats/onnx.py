"""ONNX through the torch.export-based exporter: dynamic batch, one file, labels inside."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.artifacts import atomic_path, write_text
from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export.exporter import Exported, Source, exporter

if TYPE_CHECKING:
    import torch

# protobuf cannot hold a message of 2 GiB or more.
_MAX_SINGLE_FILE = 2**31 - 2**20


@exporter("onnx")
def export_onnx(source: Source, folder: Path, config: Export) -> Exported:
    """Write `<role>.onnx` with input "input" (batch, …) and output "logits" (batch, classes).

    Weights of 2 GB or more go to `<role>.onnx.data` beside it. Raises StageError with the
    exporter's own words in one line; the whole log is kept in `<role>.onnx.log`.
    """
    import torch

    path = folder / f"{source.card.role}.onnx"
    assert source.module is not None
    log = folder / f"{source.card.role}.onnx.log"
    with _quiet() as captured:
        try:
            program = torch.onnx.export(
                _traced(source),
                (source.example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["logits"],
                opset_version=config.opset,
                verbose=False,
            )
        except Exception as error:
            write_text(log, captured.getvalue() + traceback.format_exc())
            raise StageError(
                f"the {source.card.role} cannot be exported to ONNX: {_reason(error)}",
                where=source.card.model,
                fix=f"the exporter's log is {log}",
            ) from None
        assert program is not None
        program.model.metadata_props.update(_metadata(source))
        size = sum(p.numel() * p.element_size() for p in source.module.parameters())
        if size < _MAX_SINGLE_FILE:
            with atomic_path(path) as temporary:
                program.save(temporary, external_data=False)
            files: tuple[Path, ...] = (path,)
        else:
            program.save(path, external_data=True)
            files = (path, path.with_name(path.name + ".data"))
    opset = program.model.opset_imports.get("")
    return Exported(path, files, opset=opset)


def _traced(source: Source) -> torch.nn.Module | torch.export.ExportedProgram:
    """The module's program, with global average pooling as a mean.

    PyTorch itself decomposes AdaptiveAvgPool2d(1) into a mean and a no-op `as_strided`, of which
    the exporter makes ten operators that cost a small network as much as its convolutions.
    A module that this cannot trace is left to the exporter, which knows more ways.
    """
    import torch

    assert source.module is not None
    try:
        program = torch.export.export(
            source.module,
            (source.example,),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            strict=False,
        )
    except Exception:
        return source.module
    for node in program.graph.nodes:
        pools = node.target is torch.ops.aten.adaptive_avg_pool2d.default
        if pools and list(node.args[1]) == [1, 1]:
            node.target = torch.ops.aten.mean.dim
            node.args = (node.args[0], [-2, -1], True)
    return program


def _metadata(source: Source) -> dict[str, str]:
    """What a deployer needs to use the file without the run folder."""
    import edgekd

    card = source.card
    return {
        "edgekd.version": edgekd.__version__,
        "edgekd.model": card.model,
        "edgekd.classes": json.dumps(card.classes, ensure_ascii=False),
        "edgekd.input": json.dumps(card.input.model_dump(mode="json")),
    }


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keep the exporter's chatter (missing torchvision, progress) out of the user's terminal."""
    captured = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(captured),
            contextlib.redirect_stderr(captured),
        ):
            warnings.simplefilter("ignore")
            yield captured
    finally:
        logging.disable(disabled)
