"""ONNX Runtime's own quantizers: static INT8 as pairs of Q and DQ, dynamic INT8, weights alone."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import StageError
from edgekd.quantize.backend import (
    Inputs,
    Quantized,
    Source,
    backend,
    excluded,
    feeds,
    input_shapes,
    quiet,
    read,
    save,
)
from edgekd.quantize.recipes import Recipe
from edgekd.results import Arithmetic

if TYPE_CHECKING:
    import numpy as np

# What computes on integers, and can be left in float32 on its own …
_COMPUTING = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "LeakyRelu", "AveragePool",
    "GlobalAveragePool", "ReduceMean", "Concat",
)  # fmt: skip
# … and what passes them on. Softmax and normalisations stay in float32: they lose most by it.
_PASSING = (
    "Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split",
    "Pad", "Slice", "Resize",
)  # fmt: skip
# Dynamic quantization of convolutions (ConvInteger) is slower than float32.
_DYNAMIC = ("MatMul", "Gemm", "Attention", "LSTM")
_PRODUCTS = ("MatMul", "Gemm")
# Histograms need all activations of that many samples at once.
_CHUNK = 8


@backend("onnxruntime")
def onnxruntime(
    source: Source, recipe: Recipe, samples: Sequence[Inputs], types: Arithmetic
) -> Quantized:
    """As the recipe says. Raises StageError for samples that do not fit, its own errors otherwise."""
    assert source.onnx is not None
    model = read("onnx", source.onnx)
    data = feeds(samples, input_shapes(model), where=source.onnx)
    match recipe.method:
        case "static":
            return _Static(model, source, recipe, data, types)
        case "dynamic":
            return _Dynamic(model, source, recipe, types, _DYNAMIC)
        case _:
            return _Weights(model, source, recipe, types, _PRODUCTS)


class _Quantizer:
    """What both have in common: which layers there are, and those that the recipe leaves alone."""

    notes: tuple[str, ...] = ()

    def __init__(
        self, model: Any, source: Source, recipe: Recipe, types: Arithmetic, kinds: Sequence[str]
    ) -> None:
        import onnxruntime

        self._source, self._recipe, self._types, self._kinds = source, recipe, types, kinds
        names = [node.name for node in model.graph.node]
        self._excluded = excluded(recipe, names, where=source.path)
        self.layers = tuple(
            node.name
            for node in model.graph.node
            if node.op_type in kinds and node.name not in self._excluded
        )
        self.producer = f"onnxruntime {onnxruntime.__version__}"

    def _check(self) -> None:
        if not self.layers:
            raise StageError("has no layer that can be quantized", where=str(self._source.path))

    def _save(self, model: Any, path: Path) -> tuple[Path, ...]:
        if self._source.format == "onnx":
            return save(model, path)
        import openvino

        return save(openvino.Core().read_model(model.SerializeToString()), path)


class _Static(_Quantizer):
    """Calibrated once; every choice of layers is quantized anew with the same ranges."""

    def __init__(
        self, model: Any, source: Source, recipe: Recipe, data: list[Any], types: Arithmetic
    ) -> None:
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        super().__init__(model, source, recipe, types, _COMPUTING)
        assert source.onnx is not None
        self._model = load_model_with_shape_infer(source.onnx)
        self._ranges = _ranges(source.onnx, recipe, data, source.scratch)
        # Such as an addition of integers, of shapes.
        written = self._quantized(())
        quantized = {
            node.name
            for node in written.graph.node
            if any(name.endswith("DequantizeLinear_Output") for name in node.input)
        }
        self.layers = tuple(name for name in self.layers if name in quantized)
        self._check()

    def write(self, path: Path, float32: Collection[str] = ()) -> tuple[Path, ...]:
        """Quantize all other layers."""
        with quiet():
            if set(float32) >= set(self.layers):
                return self._save(self._model, path)
            return self._save(self._quantized(float32), path)

    def _quantized(self, float32: Collection[str]) -> Any:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        signed = self._types.activations == "int8" or self._recipe.preset == "performance"
        quantizer = QDQQuantizer(
            copy.deepcopy(self._model),
            per_channel=True,
            reduce_range=self._types.reduced_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if signed else QuantType.QUInt8,
            tensors_range=copy.deepcopy(self._ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=[*self._excluded, *float32],
            op_types_to_quantize=[*_COMPUTING, *_PASSING],
            extra_options={"ActivationSymmetric": self._recipe.preset == "performance"},
        )
        quantizer.quantize_model()
        return quantizer.model.model


def _ranges(
    path: Path, recipe: Recipe, data: list[dict[str, np.ndarray]], scratch: Path | None
) -> Any:
    """The range of every activation."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    method, options = {
        "min-max": (CalibrationMethod.MinMax, {}),
        "mean-min-max": (CalibrationMethod.MinMax, {"moving_average": True}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99, "symmetric": False}),
        # By default it has 128 bins for 128 levels, so that nothing is left to choose.
        "entropy": (CalibrationMethod.Entropy, {"num_bins": 2048, "num_quantized_bins": 128}),
    }[recipe.range]
    with tempfile.TemporaryDirectory(prefix=".edgekd-calibrate-", dir=scratch) as folder:
        calibrator = create_calibrator(
            path,
            [*_COMPUTING, *_PASSING],
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=method,
            extra_options=options,
        )
        for start in range(0, len(data), _CHUNK):
            calibrator.collect_data(_Reader(data[start : start + _CHUNK]))
        return calibrator.compute_data()


class _Reader:
    """Samples as ONNX Runtime's calibrators want them."""

    def __init__(self, data: Sequence[dict[str, np.ndarray]]) -> None:
        self._rest: Iterator[dict[str, np.ndarray]] = iter(data)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


class _Dynamic(_Quantizer):
    """Weights in INT8; activations are quantized by what they are at the moment."""

    def __init__(
        self, model: Any, source: Source, recipe: Recipe, types: Arithmetic, kinds: Sequence[str]
    ) -> None:
        super().__init__(model, source, recipe, types, kinds)
        constants = {tensor.name for tensor in model.graph.initializer}
        weighted = {
            node.name
            for node in model.graph.node
            if len(node.input) > 1 and node.input[1] in constants
        }
        self.layers = tuple(name for name in self.layers if name in weighted)
        self._check()

    def write(self, path: Path, float32: Collection[str] = ()) -> tuple[Path, ...]:
        """Quantize the weights of all other layers."""
        import onnx

        assert self._source.onnx is not None
        with quiet():
            if set(float32) >= set(self.layers):
                return save(onnx.load(self._source.onnx), path)
            # A Gemm is made a MatMul and an addition.
            left = [*self._excluded, *float32]
            return save(self._made([*left, *(f"{name}_MatMul" for name in left)]), path)

    def _products(self) -> Any:
        """The model with matrix products where it has Gemm, and without shapes that were Gemm's."""
        import onnx
        from onnxruntime.quantization.onnx_model import ONNXModel

        assert self._source.onnx is not None
        model = ONNXModel(onnx.load(self._source.onnx))
        model.replace_gemm_with_matmul()
        del model.model.graph.value_info[:]
        return model.model

    def _made(self, left: list[str]) -> Any:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(
            prefix=".edgekd-dynamic-", dir=self._source.scratch
        ) as folder:
            made = Path(folder, "dynamic.onnx")
            quantize_dynamic(
                self._products(),
                made,
                op_types_to_quantize=list(self._kinds),
                per_channel=True,
                reduce_range=self._types.reduced_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=left,
            )
            return onnx.load(made)


class _Weights(_Dynamic):
    """Weights of matrix products in blocks that share a scale (MatMulNBits)."""

    def _made(self, left: list[str]) -> Any:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        bits = 4 if self._recipe.method == "weights-int4" else 8
        config = DefaultWeightOnlyQuantConfig(
            block_size=self._recipe.group_size,
            is_symmetric=True,
            bits=bits,
            # Products are computed in INT8.
            accuracy_level=4,
        )
        quantizer = MatMulNBitsQuantizer(
            self._products(), nodes_to_exclude=left, algo_config=config
        )
        quantizer.process()
        return quantizer.model.model
