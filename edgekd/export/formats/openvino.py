"""OpenVINO IR, converted from the ONNX file; weights stay float32."""

from __future__ import annotations

from pathlib import Path

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
    openvino.save_model(model, path, compress_to_fp16=False)
    return Exported(path, (path, path.with_suffix(".bin")))
