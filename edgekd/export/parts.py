"""The files that a deployable model consists of, told from the one that is opened."""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import UsageError

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
            raise UsageError(f"its weights are outside its folder: {name!r}", where=str(path))
        if not part.is_file():
            raise UsageError(f"its weights are missing: {part}", where=str(path))
    return [path, *(path.parent / name for name in names)]


def _external_data(path: Path) -> list[str]:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise UsageError(f"is not an ONNX model: {str(error)[:200]}", where=str(path)) from None
    names = (
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    )
    return list(dict.fromkeys(names))
