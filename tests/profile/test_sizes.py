"""Sizes of real files: against zlib in one go, and against the tensors themselves."""

import math
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.profile.sizes import file_sizes
from edgekd.results import ExportedFile


def test_sizes_are_those_of_the_parts_and_tensors(exported):
    for file in exported.files:
        sizes = file_sizes(file, exported.root)
        parts = [(exported.root / part).read_bytes() for part in file.files]
        assert sizes.compressed == pytest.approx(
            sum(len(zlib.compress(p)) for p in parts), rel=1e-2
        )
        tensors = onnx.load(exported.folder / f"{file.role}.onnx").graph.initializer
        expected = sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors)
        # Formats fold different constants.
        assert sizes.weights == pytest.approx(expected, rel=0 if file.format == "onnx" else 0.05)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (TensorProto.INT8, 8),
        (TensorProto.INT4, 4),
        (TensorProto.BFLOAT16, 16),
        (TensorProto.FLOAT, 32),
    ],
)
def test_small_types_count_as_they_are_stored(tmp_path, kind, bits):
    weights = helper.make_tensor("w", kind, [7, 3], np.zeros(21))
    y = helper.make_tensor_value_info("w", kind, [7, 3])
    onnx.save(
        helper.make_model(helper.make_graph([], "g", [], [y], [weights])), tmp_path / "m.onnx"
    )
    file = ExportedFile(
        role="student", format="onnx", path="m.onnx", files=("m.onnx",), size=1, seconds=0.0
    )
    assert file_sizes(file, tmp_path).weights == math.ceil(21 * bits / 8)
