"""A real teacher of the digits, trained once, as an ONNX file and as answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgekd import api
from edgekd.config.schema import Config
from edgekd.data.resolve import load
from edgekd.models import role
from tests.teachers.runs import changed


@pytest.fixture(scope="session")
def digits():
    config = Config()
    return load(config.data, config.data.seed, None)


@pytest.fixture(scope="session")
def taught(tmp_path_factory, digits):
    """`file`: a trained teacher as ONNX. `logits` (1797, 10): its PyTorch answers to every sample."""
    run = api.export(changed(distill={"epochs": 1}), out=tmp_path_factory.mktemp("taught") / "run")
    module = role.load(run, "teacher", run.path)
    logits = module(digits.tensor(np.arange(len(digits.labels)))).detach().numpy()
    return SimpleNamespace(file=run.path / "export/teacher.onnx", logits=logits, run=run)
