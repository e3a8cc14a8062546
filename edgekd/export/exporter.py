"""What an exporter is: one file per format, registered by `@exporter`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from edgekd.config.schema import Export
from edgekd.registry import Registry
from edgekd.results import ModelCard


@dataclass(frozen=True)
class Source:
    """A finished model on its way out. `example` is a normalised float32 batch (n ≥ 2, …).

    `onnx` is the model's ONNX file, made before every other format. `module` is None for a teacher
    that came as such a file.
    """

    module: nn.Module | None
    card: ModelCard
    example: Tensor
    onnx: Path


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote: `path` is the file to open, `files` are all of its parts."""

    path: Path
    files: tuple[Path, ...]
    opset: int | None = None


# (source, folder to write into, configuration) -> what was written
Exporter = Callable[[Source, Path, Export], Exported]
EXPORTERS: Registry[Exporter] = Registry("export format", "edgekd.export.formats")
exporter = EXPORTERS.register
