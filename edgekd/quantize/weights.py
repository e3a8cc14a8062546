"""Quantization that needs no samples: weights only, or activations as they come. For transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgekd.artifacts import atomic_path
from edgekd.errors import StageError
from edgekd.quantize.nncf_settings import quiet, reason
from edgekd.quantize.recipes import Recipe


def compressed(source: Path, format: str, path: Path, recipe: Recipe) -> tuple[Path, ...]:
    """Write the ONNX file `source` in `format` by the recipe's mode; returns the files.

    dynamic: ONNX Runtime's MatMulInteger on activations that are quantized at every inference. In
    an IR it is weights in INT8: OpenVINO's CPU plug-in decides itself what it quantizes at run time.
    Raises StageError in one line, with nothing written, when that is not possible.
    """
    with quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            if format == "onnx":
                return _onnx(source, path, recipe, Path(folder))
            return _openvino(source, path, recipe, Path(folder))
        except StageError:
            raise
        except Exception as error:
            raise StageError(
                f"cannot be quantized ({recipe.mode}): {reason(error)}", where=str(source)
            ) from None


def _onnx(source: Path, path: Path, recipe: Recipe, folder: Path) -> tuple[Path, ...]:
    import onnx

    if recipe.mode == "dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source,
            folder / "model.onnx",
            op_types_to_quantize=["MatMul", "Gemm", "Attention", "LSTM", "Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(folder / "model.onnx")
    else:
        model = _compress(onnx.load(source), recipe)
    _must_differ(model, source, recipe)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
    return (path,)


def _openvino(source: Path, path: Path, recipe: Recipe, folder: Path) -> tuple[Path, ...]:
    import openvino

    model = _compress(openvino.convert_model(source), recipe)
    openvino.save_model(model, folder / path.name, compress_to_fp16=False)
    for file in (path.with_suffix(".bin"), path):
        with atomic_path(file) as temporary:
            temporary.write_bytes((folder / file.name).read_bytes())
    return (path, path.with_suffix(".bin"))


def _compress(model: Any, recipe: Recipe) -> Any:
    import nncf

    if recipe.mode == "weights-int4":
        from nncf.quantization.advanced_parameters import GroupSizeFallbackMode

        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=recipe.group_size,
            all_layers=True,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST
            ),
        )
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _must_differ(model: Any, source: Path, recipe: Recipe) -> None:
    import onnx

    types = {tensor.data_type for tensor in model.graph.initializer}
    integers = {
        onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4,
    }  # fmt: skip
    if not types & integers:
        raise StageError(
            f"has no layer that {recipe.mode} quantizes: matrix products with constant weights",
            where=str(source),
            fix="use a recipe with mode: static",
        )
