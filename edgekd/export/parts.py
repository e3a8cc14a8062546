"""The files that a deployable model consists of, told from the one that is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import UsageError

if TYPE_CHECKING:
    import onnx

FORMATS = {".onnx": "onnx", ".xml": "openvino"}


def model_parts(path: Path) -> list[Path]:
    """A .onnx or .xml file, then the files with its weights.

    Raises UsageError when it is none, when a part is missing, or lies outside its folder.
    """
    if path.suffix not in FORMATS or not path.is_file():
        raise UsageError("should be an existing .onnx or .xml file", where=str(path))
    names = _external_data(path) if path.suffix == ".onnx" else [path.with_suffix(".bin").name]
    for name in names:
        part = path.parent / name
        if not part.resolve().is_relative_to(path.parent.resolve()):
            raise UsageError(
                f"its weights are outside its folder: {name!r}",
                where=str(path),
                fix="such a file could make others be read; save it again with its weights beside it",
            )
        if not part.is_file():
            raise UsageError(
                f"its weights are missing: {part}",
                where=str(path),
                fix=f"keep {name} beside {path.name}, as they were written",
            )
    return [path, *(path.parent / name for name in names)]


def _external_data(path: Path) -> list[str]:
    """Names of the files that hold weights. Raises UsageError for what is no ONNX model."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise UsageError(f"is not an ONNX model: {str(error)[:200]}", where=str(path)) from None
    if not model.graph.node or not model.opset_import:
        # Any few bytes can be read as a message without content.
        raise UsageError("is not an ONNX model: it has no operators", where=str(path))
    names: dict[str, None] = {}
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            about = {entry.key: entry.value for entry in tensor.external_data}
            names[about.get("location", "")] = None
            _check_length(path, about, tensor.name)
    return list(names)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Weights and constants, in branches and loops too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node:
                    yield from _tensors(inner)


def _check_length(path: Path, about: dict[str, str], tensor: str) -> None:
    """Raises UsageError where a file with weights, if it is there, is shorter than they are."""
    part = path.parent / about.get("location", "")
    if not part.resolve().is_relative_to(path.parent.resolve()) or not part.is_file():
        return  # said by the caller
    try:
        end = int(about.get("offset", 0)) + int(about.get("length", 0))
    except ValueError:
        raise UsageError(f"says nonsense of where {tensor!r} is", where=str(path)) from None
    if end > part.stat().st_size:
        raise UsageError(
            f"{part.name} ends before the weights {tensor!r} do: it was cut off, or belongs to another file",
            where=str(path),
        )
