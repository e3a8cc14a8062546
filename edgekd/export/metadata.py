"""What an exported file says about itself: all that a deployer needs to use it without the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.export.exporter import Source

if TYPE_CHECKING:
    import onnx


def describe(source: Source) -> dict[str, str]:
    """Keys `edgekd.…`, JSON where a value is not a plain text."""
    import edgekd

    card = source.card
    about = {
        "edgekd.version": edgekd.__version__,
        "edgekd.model": card.model,
        "edgekd.classes": json.dumps(card.classes, ensure_ascii=False),
        # {shape, scale, mean, std}: float32 of `shape`, (raw / scale − mean) / std.
        "edgekd.input": json.dumps(card.input.model_dump(mode="json")),
    }
    if source.weights is not None:
        about["edgekd.weights.sha256"] = source.weights
    return about


def set_onnx(model: onnx.ModelProto, about: dict[str, str]) -> None:
    """Into `metadata_props`, over what has the same key."""
    kept = {entry.key: entry.value for entry in model.metadata_props} | about
    del model.metadata_props[:]
    for key, value in sorted(kept.items()):
        model.metadata_props.add(key=key, value=value)


def set_openvino(model: Any, about: dict[str, str]) -> None:
    """Into the IR's `rt_info`, nested by the dots of the key."""
    for key, value in about.items():
        model.set_rt_info(value, key.split("."))


def read(path: Path) -> dict[str, str]:
    """What `describe` put into a .onnx, .xml or .ort file; nothing of another program's file."""
    if path.suffix == ".xml":
        return _read_openvino(path)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    return {key: value for key, value in found.items() if key.startswith("edgekd.")}


def _read_openvino(path: Path) -> dict[str, str]:
    import openvino

    model = openvino.Core().read_model(path)
    if not model.has_rt_info(["edgekd"]):
        return {}

    def flat(prefix: str, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            return {prefix: str(getattr(value, "value", value))}
        return {
            k: v for key, part in value.items() for k, v in flat(f"{prefix}.{key}", part).items()
        }

    return flat("edgekd", model.get_rt_info(["edgekd"]).value)
