"""Networks that cannot be exported: the operator, the module, the user's line, and what to try."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.config.schema import Export
from edgekd.errors import StageError, UsageError
from edgekd.export import stage
from edgekd.export.exporter import EXPORTERS
from edgekd.profile.device.runtimes import load
from tests.export import user_models
from tests.export.test_formats import network, source


def line(function, text):
    """FILE:LINE of the line of a function that has this text."""
    lines, first = inspect.getsourcelines(function)
    position = next(i for i, content in enumerate(lines) if text in content)
    return f"{Path(user_models.__file__)}:{first + position}"


def refused(part, folder):
    with pytest.raises(StageError) as caught:
        EXPORTERS.get("onnx")(source(user_models.Net(part), folder), folder, Export())
    # Nothing half-written: only the log.
    assert [path.name for path in folder.iterdir()] == ["student.onnx.log"]
    return caught.value


def test_control_flow_on_values_is_named_with_module_and_line(tmp_path, capfd):
    error = refused(user_models.Branches(), tmp_path)
    assert "blocks.1 (Branches)" in error.where
    assert line(user_models.Branches.forward, "if x.sum()") in error.where
    assert "values of a tensor" in error.what
    assert "torch.where" in error.fix
    assert len(str(error).splitlines()) == 2
    log = (tmp_path / "student.onnx.log").read_text()
    assert "Traceback" in log
    assert "GuardOnDataDependentSymNode" in log
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_an_operator_that_onnx_has_not_is_named_with_module_and_line(tmp_path):
    error = refused(user_models.SingularValues(), tmp_path)
    assert "blocks.1 (SingularValues)" in error.where
    assert line(user_models.SingularValues.forward, "svdvals") in error.where
    assert re.search(r"aten\._?linalg_svd", error.what)
    assert "other PyTorch operators" in error.fix
    assert len(str(error).splitlines()) == 2


def test_a_network_that_fails_itself_says_so_with_its_line(tmp_path):
    error = refused(user_models.Broken(), tmp_path)
    assert "blocks.1 (Broken)" in error.where
    assert line(user_models.Broken.forward, "x @") in error.where


@pytest.mark.slow
def test_what_onnx_has_not_but_openvino_has_is_exported_to_openvino_alone(tmp_path):
    given = source(user_models.Net(user_models.Inverse()), tmp_path)
    config = Export(formats=["openvino"])
    ((format, made, _),) = stage._exported(given, tmp_path, config)
    assert (format, made.producer) == ("openvino", "openvino from PyTorch")
    assert made.notes == ("from PyTorch: from ONNX it fails: there is no ONNX file of it",)
    session = load("openvino", made.path, threads=1, precision="f32")
    inputs = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        assert np.abs(session.run(inputs.numpy())[0] - given.module(inputs).numpy()).max() < 1e-3
    with pytest.raises(StageError, match="linalg_inv"):
        list(stage._exported(given, tmp_path, Export()))


def test_openvino_alone_takes_no_control_flow_either(tmp_path):
    """TorchScript, through which OpenVINO reads a module, would keep one branch and only warn."""
    given = source(user_models.Net(user_models.Branches()), tmp_path)
    with pytest.raises(StageError, match=r"values of a tensor") as caught:
        list(stage._exported(given, tmp_path, Export(formats=["openvino"])))
    assert line(user_models.Branches.forward, "if x.sum()") in caught.value.where
    assert not (tmp_path / "student.xml").exists()
    assert "may do something else for other inputs" in (tmp_path / "student.xml.log").read_text()


def test_a_network_for_one_batch_size_is_refused(tmp_path):
    given = source(user_models.Net(user_models.OneBatch()), tmp_path)
    with pytest.raises(StageError, match="works for one batch only, 2: its code makes a constant"):
        EXPORTERS.get("onnx")(given, tmp_path, Export())
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_the_network_does_not_take_are_no_free_sizes(tmp_path):
    config = Export(dynamic=["height", "width"])
    with pytest.raises(UsageError, match="takes no other sizes") as caught:
        EXPORTERS.get("onnx")(source(network("mlp"), tmp_path), tmp_path, config)
    assert caught.value.where == "export.dynamic (batch, height, width)"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        (["sequence"], "no input has a sequence"),
        ({"pixels": ["batch"]}, "no such input; there are input"),
        ({"input": ["batch", None]}, "names 2 sizes"),
        ({"input": ["height", None, None, None]}, "the first size is the batch"),
    ],
)
def test_sizes_that_there_are_not_are_refused_before_anything_is_written(
    tmp_path, dynamic, message
):
    with pytest.raises(UsageError, match=message) as caught:
        EXPORTERS.get("onnx")(source(network("mlp"), tmp_path), tmp_path, Export(dynamic=dynamic))
    assert "export.dynamic" in caught.value.where
    assert list(tmp_path.iterdir()) == []
