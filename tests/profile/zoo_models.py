"""Networks of the zoo as ONNX and OpenVINO files, each exported once."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch

from edgekd.config.schema import Export
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models.resolve import build
from edgekd.results import InputSpec, ModelCard

SHAPE = (3, 32, 32)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A function from a zoo name to `module`, `onnx` and `openvino` (paths), for 3×32×32."""

    @cache
    def export(name):
        folder = tmp_path_factory.mktemp(name)
        module = build(f"zoo:{name}", {}, input_shape=SHAPE, classes=100, seed=0, base=folder)
        card = ModelCard(
            role="student", model=f"zoo:{name}", args={}, classes=tuple(map(str, range(100))), seed=0,
            input=InputSpec(shape=SHAPE, scale=1, mean=(0,), std=(1,)), parameters=1,
        )  # fmt: skip
        source = Source(module.eval(), card, torch.randn(2, *SHAPE), folder / "student.onnx")
        # The faster producer may be another one in each run; only from ONNX are operators named as there.
        config = Export(producer="onnx")
        files = {f: EXPORTERS.get(f)(source, folder, config).path for f in ("onnx", "openvino")}
        return SimpleNamespace(module=module, **files)

    return export
