"""From a module to the graph that all formats are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.config.schema import Export
from edgekd.export.dimensions import dynamic_shapes
from edgekd.export.exporter import Source

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def trace(source: Source, config: Export) -> ExportedProgram:
    """The module's program, with global average pooling as a mean.

    PyTorch itself decomposes AdaptiveAvgPool2d(1) into a mean and a no-op `as_strided`, of which
    the exporter makes ten operators that cost a small network as much as its convolutions.
    Raises whatever PyTorch does where it cannot (see `export/failure.py`).
    """
    import torch

    program = torch.export.export(
        source.module,
        tuple(source.inputs.values()),
        dynamic_shapes=dynamic_shapes(source.inputs, config),
        strict=False,
    )
    for node in program.graph.nodes:
        pools = node.target is torch.ops.aten.adaptive_avg_pool2d.default
        if pools and list(node.args[1]) == [1, 1]:
            node.target = torch.ops.aten.mean.dim
            node.args = (node.args[0], [-2, -1], True)
    return program
