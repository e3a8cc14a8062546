"""What weights are stored in, counted in files that quantizers really wrote."""

import math

import pytest

from edgekd.quantize.arithmetic import arithmetic
from edgekd.quantize.backend import Source, prepare
from edgekd.quantize.contents import notes_on, stored_weights
from edgekd.quantize.recipes import Recipe
from edgekd.results import ExportedFile

pytest.importorskip("nncf")
SUFFIX = {"onnx": "onnx", "openvino": "xml"}


def weights_of(module):
    return sum(math.prod(p.shape) for p in module.parameters() if p.ndim > 1)


def quantized(exported, folder, format, method, left=0):
    files = (exported.folder / f"teacher.{SUFFIX[format]}", exported.folder / "teacher.onnx")
    recipe = Recipe(name="r", method=method, backend="auto", group_size=16)
    samples = list(exported.inputs[:, None])
    made = prepare(Source(format, *files), recipe, samples, arithmetic(recipe))
    return made.write(folder / f"q.{SUFFIX[format]}", made.layers[:left])[0]


@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize(
    ("method", "kind"), [("static", "int8"), ("weights-int8", "int8"), ("weights-int4", "int4")]
)
def test_every_weight_is_counted_in_its_type(exported, tmp_path, format, method, kind):
    whole = weights_of(exported.modules["teacher"])
    original = exported.folder / f"teacher.{SUFFIX[format]}"
    assert stored_weights(format, original) == {"f32": whole}
    found = stored_weights(format, quantized(exported, tmp_path, format, method))
    # Blocks are filled up, and their scales are weights of their own.
    assert whole <= found[kind] < 1.3 * whole
    assert sum(found.values()) - found[kind] < 0.1 * whole


@pytest.mark.parametrize("format", SUFFIX)
def test_what_stays_in_float32_and_a_file_that_does_not_shrink_are_told(exported, tmp_path, format):
    path = quantized(exported, tmp_path, format, "static", left=1)

    def file(variant, size):
        return ExportedFile(
            role="student", format=format, variant=variant, path="x", files=(), size=size, seconds=0
        )

    types, size = notes_on(file("int8", 2000), file("f32", 2000), path)
    assert "% are in int8, " in types
    assert types.endswith("% in f32")
    assert size == "with 2,000 bytes it is not smaller than in float32 (2,000 bytes)"
    whole = quantized(exported, tmp_path, format, "static")
    assert notes_on(file("int8", 1999), file("f32", 2000), whole) == ()
