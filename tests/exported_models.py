"""Two small real models as ONNX and OpenVINO files, exported once."""

from types import SimpleNamespace

import pytest
import torch

from edgekd.config.schema import Export, Teacher
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.results import ExportedFile, InputSpec, ModelCard


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`root`, `files` (ExportedFile), `modules` by role, `inputs` (32, 1, 8, 8) float32."""
    root = tmp_path_factory.mktemp("exported")
    folder = root / "export"
    folder.mkdir()
    inputs = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    modules, files = {}, []
    for role, args in (("teacher", {"hidden": [512, 512]}), ("student", {"hidden": [16]})):
        module = build("zoo:mlp", args, input_shape=(1, 8, 8), classes=10, seed=0, base=root).eval()
        modules[role] = module
        card = ModelCard(
            role=role, model=Teacher().model, args={}, classes=tuple("0123456789"), seed=0,
            input=InputSpec(shape=(1, 8, 8), scale=1, mean=(0,), std=(1,)), parameters=1,
        )  # fmt: skip
        source = Source(module, card, inputs[:2], folder / f"{role}.onnx")
        for format in ("onnx", "openvino"):
            made = EXPORTERS.get(format)(source, folder, Export())
            files.append(
                ExportedFile(
                    role=role,
                    format=format,
                    path=f"export/{made.path.name}",
                    files=tuple(f"export/{f.name}" for f in made.files),
                    size=sum(f.stat().st_size for f in made.files),
                    seconds=0.0,
                )
            )
    return SimpleNamespace(
        root=root, files=tuple(files), modules=modules, inputs=inputs.numpy(), folder=folder
    )
