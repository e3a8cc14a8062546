"""What of a deployable file is weights, and how small it gets in a package."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

from edgekd.results import ExportedFile

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """Bytes: deflated, as zip files, wheels and app stores do; and of the weights alone."""

    compressed: int
    weights: int


def file_sizes(file: ExportedFile, root: Path) -> Sizes:
    """Of a file with all of its parts, which lie below `root`."""
    parts = [root / part for part in file.files]
    weights = _onnx_weights(root / file.path) if file.format == "onnx" else _openvino_weights(parts)
    return Sizes(sum(map(_deflated, parts)), weights)


def _deflated(path: Path) -> int:
    packer, size = zlib.compressobj(), 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def _onnx_weights(path: Path) -> int:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return sum(
        math.ceil(math.prod(tensor.dims) * _bits(tensor.data_type) / 8)
        for tensor in graph.initializer
    )


def _bits(data_type: int) -> int:
    """Of one element as stored: numpy has no type for the small ones."""
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    if data_type in (TensorProto.INT4, TensorProto.UINT4):
        return 4
    return 8 * tensor_dtype_to_np_dtype(data_type).itemsize


def _openvino_weights(parts: list[Path]) -> int:
    """The .bin file holds the constants and nothing else."""
    return sum(part.stat().st_size for part in parts if part.suffix == ".bin")
