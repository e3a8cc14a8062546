"""OpenVINO IR, converted from the ONNX file; weights stay float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export.exporter import Exported, Source, exporter


@exporter("openvino")
def export_openvino(source: Source, folder: Path, config: Export) -> Exported:
    """Write `<role>.xml` and `<role>.bin`. Raises StageError when OpenVINO refuses the model."""
    import openvino

    path = folder / f"{source.card.role}.xml"
    try:
        model = openvino.convert_model(source.onnx)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise StageError(
            f"OpenVINO cannot convert the {source.card.role}: {reason}", where=source.card.model
        ) from None
    _name_generated(model)
    openvino.save_model(model, path, compress_to_fp16=False)
    return Exported(path, (path, path.with_suffix(".bin")))


def _name_generated(model: Any) -> None:
    """Number the operators that OpenVINO made up names for by their place in the graph.

    Its own numbers count everything that the process ever made: the same model would be another
    file each time.
    """
    for position, operator in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*_\d+", operator.friendly_name):
            operator.friendly_name = f"{operator.get_type_name()}_{position}"
