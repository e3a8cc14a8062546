"""Networks of the zoo as ONNX and OpenVINO files: what `predict.py` is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgekd.config.schema import Export
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.results import InputSpec, ModelCard

GRAY, SMALL, COLOUR, MIDDLE, LARGE = (
    (1, 28, 28),
    (3, 32, 32),
    (3, 64, 64),
    (3, 96, 96),
    (3, 224, 224),
)
NETWORKS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("mlp", {"hidden": [64]}, GRAY),
    ("mlp", {"hidden": [256, 128, 64]}, GRAY),
    ("mlp", {"hidden": [512, 512]}, SMALL),
    ("mlp", {"hidden": [2048, 2048, 1024]}, GRAY),
    ("dscnn", {}, GRAY),
    ("dscnn", {"width": 64, "depth": 4}, SMALL),
    ("dscnn", {"width": 96, "depth": 6}, COLOUR),
    ("dscnn", {"width": 64, "depth": 4}, MIDDLE),
    ("resnet8", {}, GRAY),
    ("resnet8", {}, SMALL),
    ("resnet14", {}, COLOUR),
    ("resnet20", {}, SMALL),
    ("resnet20", {}, MIDDLE),
    ("resnet32", {}, SMALL),
    ("resnet56", {}, SMALL),
    ("resnet110", {}, SMALL),
    ("resnet8x2", {}, SMALL),
    ("resnet20x2", {}, SMALL),
    ("resnet32x2", {}, COLOUR),
    ("resnet8x4", {}, SMALL),
    ("resnet8x4", {}, COLOUR),
    ("resnet20x4", {}, SMALL),
    ("resnet32x4", {}, SMALL),
    ("wrn16-1", {}, GRAY),
    ("wrn16-2", {}, SMALL),
    ("wrn16-2", {}, MIDDLE),
    ("wrn40-1", {}, SMALL),
    ("wrn40-2", {}, SMALL),
    ("vgg8", {}, SMALL),
    ("vgg8", {}, COLOUR),
    ("vgg11", {}, SMALL),
    ("vgg13", {}, SMALL),
    ("vgg19", {}, SMALL),
    ("mobilenetv2", {"width": 0.25}, SMALL),
    ("mobilenetv2", {}, SMALL),
    ("mobilenetv2", {"width": 1.0}, COLOUR),
    ("mobilenetv2", {"width": 0.5}, MIDDLE),
    ("mobilenetv2", {"width": 1.0}, LARGE),
    ("shufflenetv1", {}, SMALL),
    ("shufflenetv1", {}, MIDDLE),
    ("shufflenetv2", {}, SMALL),
    ("shufflenetv2", {}, COLOUR),
    ("shufflenetv2", {}, LARGE),
    ("vit", {}, SMALL),
    ("vit", {"dim": 128, "depth": 6, "patch": 8}, COLOUR),
    ("vit", {"dim": 192, "depth": 4, "heads": 3, "patch": 8}, MIDDLE),
    ("vit", {"dim": 192, "depth": 12, "heads": 3, "patch": 16}, LARGE),
    ("vit", {"dim": 96, "depth": 3, "heads": 2, "patch": 7}, GRAY),
]


def title(name: str, args: dict[str, Any], shape: tuple[int, ...]) -> str:
    """For tables and file names."""
    words = [
        f"{key}{'-'.join(map(str, v)) if isinstance(v, list) else v}" for key, v in args.items()
    ]
    return " ".join([name, *words, f"{shape[0]}x{shape[1]}"]).replace(" ", "_")


def export_all(folder: Path) -> dict[str, tuple[tuple[int, ...], dict[str, Path]]]:
    """Input shape and files by format of every network, exported unless they are there."""
    found: dict[str, tuple[tuple[int, ...], dict[str, Path]]] = {}
    for name, args, shape in NETWORKS:
        text = title(name, args, shape)
        paths = {"onnx": folder / text / "student.onnx", "openvino": folder / text / "student.xml"}
        if not all(path.is_file() for path in paths.values()):
            print(f"export {text}", flush=True)
            _export(name, args, shape, folder / text)
        found[text] = (shape, paths)
    return found


def _export(name: str, args: dict[str, Any], shape: tuple[int, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    module = build(f"zoo:{name}", args, input_shape=shape, classes=100, seed=0, base=folder).eval()
    card = ModelCard(
        role="student", model=f"zoo:{name}", args=args, classes=tuple(map(str, range(100))), seed=0,
        input=InputSpec(shape=shape, scale=1, mean=(0,), std=(1,)), parameters=1,
    )  # fmt: skip
    source = Source(module, card, torch.randn(2, *shape), folder / "student.onnx")
    for format in ("onnx", "openvino"):
        EXPORTERS.get(format)(source, folder, Export())
