"""NNCF, which serves ONNX and OpenVINO models alike: static INT8, and weights alone in INT8 or INT4."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

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

_RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence")


@backend("nncf")
def nncf(source: Source, recipe: Recipe, samples: Sequence[Inputs], types: Arithmetic) -> Quantized:
    """As the recipe says. Raises StageError for samples that do not fit, NNCF's errors otherwise."""
    model = read(source.format, source.path)
    data = feeds(samples, input_shapes(model), where=source.path)
    if recipe.method == "static":
        return _Static(model, source, recipe, data, types)
    return _Weights(model, source, recipe)


class _Static:
    """Quantized once; layers go back to float32 by NNCF's own surgery on the graph."""

    notes: tuple[str, ...] = ()

    def __init__(
        self, model: Any, source: Source, recipe: Recipe, data: list[Any], types: Arithmetic
    ) -> None:
        import nncf

        self._format, self._original = source.format, model
        before = _graph(model)
        operators = _operators(before)
        left = excluded(recipe, list(operators), where=source.path)
        self._control = _control(source.format)
        self._quantize(recipe, data, types, left)
        try:
            self._groups = self._find_groups(before)
        except KeyError:
            # NNCF takes the quantizer of a state that is made from a shape for one of the shape.
            recurrent = [name for name, kind in operators.items() if kind in _RECURRENT]
            if not recurrent:
                raise
            self._quantize(recipe, data, types, [*left, *recurrent])
            self._groups = self._find_groups(before)
            self.notes = (f"in float32, which NNCF cannot tell apart: {', '.join(recurrent)}",)
        self.layers = tuple(self._groups)
        if not self.layers:
            raise StageError("has no layer that can be quantized", where=str(source.path))
        self.producer = f"nncf {nncf.__version__}"

    def _quantize(
        self, recipe: Recipe, data: list[Any], types: Arithmetic, left: list[str]
    ) -> None:
        import nncf

        model = self._original
        self._model = nncf.quantize(
            copy.deepcopy(model) if self._format == "onnx" else model.clone(),
            nncf.Dataset(data),
            subset_size=len(data),
            preset=nncf.QuantizationPreset(recipe.preset),
            model_type=nncf.ModelType(recipe.model_type) if recipe.model_type else None,
            ignored_scope=nncf.IgnoredScope(names=left) if left else None,
            target_device=nncf.TargetDevice.CPU,
            fast_bias_correction=recipe.bias_correction != "accurate",
            advanced_parameters=advanced_parameters(recipe, types),
        )
        self._graph = _graph(self._model)

    def write(self, path: Path, float32: Collection[str] = ()) -> tuple[Path, ...]:
        """NNCF keeps quantized weights in float32 until they are compressed, here."""
        with quiet():
            model = self._reverted(float32)
            if self._format == "onnx":
                from nncf.onnx.quantization.quantize_model import (
                    compress_quantize_weights_transformation as compress,
                )
            else:
                from nncf.openvino.quantization.quantize_model import (
                    compress_quantize_weights_transformation as compress,
                )
            compress(model)
            return save(model, path)

    def _find_groups(self, before: Any) -> dict[str, Any]:
        """Quantizers that can only go together, by their operators; `before`: the float32 model's graph."""
        from nncf.quantization.algorithms.accuracy_control.ranker import Ranker

        # Without its quantizers a layer wants its bias back as it was before the correction. Not its
        # weights, which NNCF's own accuracy control restores too: they may be SmoothQuant's, whose
        # other half stays in the graph.
        for node in before.get_all_nodes():
            if self._control.is_node_with_bias(node, before):
                self._graph.get_node_by_name(node.node_name).attributes["original_bias"] = (
                    self._control.get_bias_value(node, before, self._original)
                )
        ranker = Ranker(1, None, self._control, None)
        found = {}
        # NNCF finds them from the end of the graph to its start.
        for group in reversed(ranker.find_groups_of_quantizers_to_rank(self._graph)):
            weighted = [op for op in group.operations if self._control.is_node_with_weight(op)]
            nodes = weighted or group.operations or group.quantizers[:1]
            name = " + ".join(sorted(_plain(node.node_name) for node in nodes))
            while name in found:
                name += "'"
            found[name] = group
        return found

    def _reverted(self, layers: Collection[str]) -> Any:
        from nncf.common.quantization.quantizer_removal import (
            revert_operations_to_floating_point_precision as revert,
        )
        from nncf.quantization.advanced_parameters import RestoreMode

        groups = [self._groups[name] for name in self.layers if name in set(layers)]
        operations = {op.node_id: op for group in groups for op in group.operations}
        quantizers = {q.node_id: q for group in groups for q in group.quantizers}
        if not groups:
            return copy.deepcopy(self._model) if self._format == "onnx" else self._model.clone()
        return revert(
            list(operations.values()),
            list(quantizers.values()),
            self._model,
            self._graph,
            RestoreMode.ACTIVATIONS_AND_WEIGHTS,
            self._control.get_op_with_weights_metatypes(),
            self._control.is_node_with_weight,
            self._control.get_weight_tensor_port_ids,
        )


def _plain(name: str) -> str:
    """Without what OpenVINO adds to the name of a node that it makes itself."""
    return re.sub(r"/(WithoutBiases|fq_.*)$", "", name)


def _control(format: str) -> Any:
    if format == "onnx":
        from nncf.quantization.algorithms.accuracy_control.onnx_backend import (
            ONNXAccuracyControlAlgoBackend,
        )

        return ONNXAccuracyControlAlgoBackend()
    from nncf.quantization.algorithms.accuracy_control.openvino_backend import (
        OVAccuracyControlAlgoBackend,
    )

    return OVAccuracyControlAlgoBackend()


def _graph(model: Any) -> Any:
    from nncf.common.factory import build_graph

    return build_graph(model)


def _operators(graph: Any) -> dict[str, str]:
    """Names and types of what computes, in the order of the graph."""
    return {
        node.node_name: node.node_type
        for node in graph.topological_sort()
        if node.node_type not in ("Constant", "Parameter", "Result")
    }


def advanced_parameters(recipe: Recipe, types: Arithmetic) -> Any:
    """Ranges, bias correction and SmoothQuant of the recipe, in NNCF's words."""
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    ranges = {
        "min-max": Ranges.MINMAX,
        "mean-min-max": Ranges.MEAN_MINMAX,
        "percentile": Ranges.MEAN_QUANTILE,
        "mse": Ranges.HISTOGRAM,
    }
    # Below 0: no SmoothQuant.
    alpha = -1.0 if recipe.smooth_quant is None else recipe.smooth_quant
    return nncf.AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if types.reduced_range else OverflowFix.DISABLE,
        activations_range_estimator_params=ranges[recipe.range],
        disable_bias_correction=recipe.bias_correction == "none",
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=alpha),
        backend_params={"compress_weights": False},
    )


class _Weights:
    """Weights alone; OpenVINO quantizes the activations of such layers while it runs."""

    def __init__(self, model: Any, source: Source, recipe: Recipe) -> None:
        import nncf

        self._model, self._recipe = model, recipe
        self.notes: tuple[str, ...] = (
            ("weights in INT8: OpenVINO quantizes activations while it runs",)
            if recipe.method == "dynamic"
            else ()
        )
        graph, control = _graph(model), _control(source.format)
        self._excluded = excluded(recipe, list(_operators(graph)), where=source.path)
        self.layers = tuple(
            node.node_name
            for node in graph.topological_sort()
            if control.is_node_with_weight(node) and node.node_name not in self._excluded
        )
        if not self.layers:
            raise StageError("has no layer that can be quantized", where=str(source.path))
        self.producer = f"nncf {nncf.__version__}"

    def write(self, path: Path, float32: Collection[str] = ()) -> tuple[Path, ...]:
        """Compress the weights of all other layers."""
        import nncf

        modes = nncf.CompressWeightsMode
        options: dict[str, Any] = {"mode": modes.INT8_ASYM}
        if self._recipe.method == "weights-int4":
            options = {
                "mode": modes.INT4_SYM,
                "group_size": self._recipe.group_size,
                "all_layers": True,
                "advanced_parameters": nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            }
        left = [*self._excluded, *float32]
        with quiet():
            model = self._model.clone()
            if set(float32) < set(self.layers):
                scope = nncf.IgnoredScope(names=left) if left else None
                model = nncf.compress_weights(model, ignored_scope=scope, **options)
            return save(model, path)
