"""Device files: a finished file with preprocessing and answer inside, and ONNX Runtime's own format.

Made from the finished file, whatever made that, so that INT8 files get them too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export.fold import InputType, fold_onnx, fold_openvino
from edgekd.export.ort import to_ort
from edgekd.results import DeviceFile, ExportedFile, InputSpec

_FOLD = {"onnx": fold_onnx, "openvino": fold_openvino}


def device_files(
    files: Iterable[ExportedFile], config: Export, spec: InputSpec, raw: str, folder: Path
) -> tuple[DeviceFile, ...]:
    """The device files of the student's `files`, beside them; none where none are configured.

    They lie in `folder`; `raw` is numpy's name for the type of raw values.
    Raises StageError where a file cannot be converted.
    """
    students = [file for file in files if file.role == "student" and file.format in _FOLD]
    return tuple(made for file in students for made in _of(file, config, spec, raw, folder))


def _of(
    file: ExportedFile, config: Export, spec: InputSpec, raw: str, folder: Path
) -> Iterator[DeviceFile]:
    source = folder / Path(file.path).name
    folds = config.preprocessing == "fold"
    input_type: InputType = "uint8" if folds and raw == "uint8" else "float32"
    if spec.tokens is not None:
        input_type = "int64"

    def record(format: str, write: Callable[[], tuple[Path, ...]], producer: str) -> DeviceFile:
        started = time.monotonic()
        try:
            parts = write()
        except StageError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[-1][:300]
            raise StageError(
                f"no device file can be made of it: {type(error).__name__}: {reason}",
                where=str(source),
                fix="set export.preprocessing to none, export.output to logits and export.ort to false",
            ) from None
        names = [Path(file.path).with_name(part.name).as_posix() for part in parts]
        return DeviceFile(
            role=file.role,
            format=format,
            variant=file.variant,
            path=names[0],
            files=tuple(names),
            # What only a build needs is no part of what a device loads.
            size=sum(part.stat().st_size for part in parts if part.suffix != ".config"),
            seconds=round(time.monotonic() - started, 3),
            opset=file.opset,
            producer=producer,
            made_from=file.path,
            input="raw" if folds else "normalised",
            input_type=input_type,
            output=config.output,
        )

    last = source
    if folds or config.output != "logits":
        last = source.with_name(f"{source.stem}-device{source.suffix}")
        fold = _FOLD[file.format]
        yield record(
            file.format,
            lambda: fold(source, last, config, spec, input_type),
            f"edgekd from {source.name}",
        )
    if config.ort and file.format == "onnx":
        before = last
        yield record(
            "ort",
            lambda: to_ort(before, before.with_suffix(".ort")),
            f"onnxruntime from {before.name}",
        )
