"""What an exporter is: one file per format, registered by `@exporter`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from edgekd.config.schema import Export
from edgekd.registry import Registry
from edgekd.results import ModelCard


@dataclass(frozen=True)
class Source:
    """A finished model on its way out.

    `example` is a batch (n ≥ 2, …) of real inputs as the module takes them: one tensor, called
    "input", or one per input by name, in the order of `module.forward`'s parameters. `outputs`
    names what it returns, in order. `onnx` is the model's ONNX file, made before every other
    format. `weights` is the SHA-256 of the file that the weights came from, where there is one.
    """

    module: nn.Module
    card: ModelCard
    example: Tensor | Mapping[str, Tensor]
    onnx: Path
    outputs: tuple[str, ...] = ("logits",)
    weights: str | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The example by name."""
        return {"input": self.example} if isinstance(self.example, Tensor) else dict(self.example)


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote: `path` is the file to open, `files` are all of its parts.

    `producer` says what made it of what, `notes` what else was decided and why.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int | None = None
    producer: str | None = None
    notes: tuple[str, ...] = ()


# (source, folder to write into, configuration) -> what was written
Exporter = Callable[[Source, Path, Export], Exported]
EXPORTERS: Registry[Exporter] = Registry("export format", "edgekd.export.formats")
exporter = EXPORTERS.register
