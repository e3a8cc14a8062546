"""Post-training quantization of the student's ONNX file; the files of both formats are made from it.

Measured on ResNets (benchmarks/results/int8_speed.md): OpenVINO runs the IR of such a file as fast as
one that NNCF quantizes itself, so that one calibration serves both and they are one function.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgekd.artifacts import atomic_path
from edgekd.errors import StageError, UsageError
from edgekd.profile.device.environment import describe
from edgekd.quantize.nncf_settings import quiet, ranges, reason
from edgekd.quantize.qdq import with_float_outputs, with_integer_weights
from edgekd.quantize.recipes import Recipe

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgekd.profile.targets import Target

# Inputs of one sample each, or by name where a model has several.
Samples = list[np.ndarray] | list[dict[str, np.ndarray]]

# What multiplies 8-bit integers without overflow: with these no reduced range is needed.
INT8_ISA = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}


def require() -> None:
    """Raises UsageError when NNCF is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise UsageError(
            "quantization needs NNCF, which is not installed",
            where="quantize",
            fix="pip install 'edgekd[quantize]'",
        )


def quantize(
    source: Path,
    recipe: Recipe,
    samples: Samples,
    types: Types,
) -> ModelProto:
    """The ONNX file `source` with QuantizeLinear and DequantizeLinear, weights as integers.

    `samples` are inputs (1, …) float32, or by name for a model with several (backend nncf).
    Raises StageError in one line for samples that do not fit and for models that cannot be quantized.
    """
    require()
    model = _read(source)
    _check(samples, model, source)
    excluded = _excluded(recipe, model, source)
    with quiet():
        try:
            backend = _nncf if recipe.backend == "nncf" else _onnxruntime
            return with_integer_weights(backend(source, model, recipe, samples, excluded, types))
        except Exception as error:
            raise StageError(f"cannot be quantized: {reason(error)}", where=str(source)) from None


def _nncf(
    source: Path,
    model: ModelProto,
    recipe: Recipe,
    samples: Samples,
    excluded: list[str],
    types: Types,
) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )

    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if types.reduced_range else OverflowFix.DISABLE,
        activations_range_estimator_params=ranges(recipe),
        disable_bias_correction=recipe.bias_correction == "none",
    )
    if recipe.smooth_quant is not None:
        advanced.smooth_quant_alphas = AdvancedSmoothQuantParameters(matmul=recipe.smooth_quant)
    return nncf.quantize(
        model,
        nncf.Dataset([x if isinstance(x, dict) else {input_name(model): x} for x in samples]),
        preset=nncf.QuantizationPreset(recipe.preset),
        subset_size=len(samples),
        fast_bias_correction=recipe.bias_correction != "accurate",
        model_type=nncf.ModelType(recipe.model_type) if recipe.model_type else None,
        ignored_scope=nncf.IgnoredScope(names=excluded) if excluded else None,
        target_device=nncf.TargetDevice.CPU,
        advanced_parameters=advanced,
    )


def _onnxruntime(
    source: Path,
    model: ModelProto,
    recipe: Recipe,
    samples: Samples,
    excluded: list[str],
    types: Types,
) -> Any:
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    methods = {
        "min-max": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            source,
            path,
            _reader(input_name(model), cast("list[np.ndarray]", samples)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=types.reduced_range,
            activation_type=QuantType.QInt8 if types.signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=methods[recipe.range],
            extra_options={
                "ActivationSymmetric": recipe.preset == "performance",
                "CalibPercentile": recipe.percentile,
                # Without its activation a layer could not go back to float32.
                "QDQKeepRemovableActivations": True,
            },
        )
        return with_float_outputs(onnx.load(path))


def _reader(name: str, samples: Iterable[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.rest, None)
            return None if x is None else {name: x}

    return Reader()


def input_name(model: ModelProto) -> str:
    """The name of the model's only input. Raises StageError when it has several."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    if len(names) != 1:
        raise StageError(f"has {len(names)} inputs; models with one can be calibrated")
    return str(names[0])


def _check(samples: Samples, model: ModelProto, source: Path) -> None:
    """Raises StageError where calibration would fail late or, worse, not at all."""
    if not samples:
        raise StageError("there are no samples to calibrate with", where=str(source))
    if isinstance(samples[0], dict):
        for name in samples[0]:
            _check_input([sample[name] for sample in samples], name, model, source)
    else:
        _check_input(samples, input_name(model), model, source)


def _check_input(samples: list[np.ndarray], name: str, model: ModelProto, source: Path) -> None:
    (value,) = [value for value in model.graph.input if value.name == name]
    shape = [d.dim_value or None for d in value.type.tensor_type.shape.dim]
    for position, sample in enumerate(samples):
        fits = sample.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape[1:], sample.shape[1:], strict=True)
        )
        if not fits:
            raise StageError(
                f"calibration sample {position} has the shape {sample.shape[1:]}; the model takes "
                f"{tuple(shape[1:])}",
                where=str(source),
            )
        if not np.isfinite(sample).all():
            raise StageError(
                f"calibration sample {position} has values that are not finite", where=str(source)
            )


def _excluded(recipe: Recipe, model: ModelProto, source: Path) -> list[str]:
    names = [node.name for node in model.graph.node]
    for pattern in recipe.exclude:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise StageError(
                f"cannot be quantized: no node is called {pattern!r}",
                where=str(source),
                fix="exclude takes regular expressions of whole ONNX node names, such as "
                f"{next(iter(names), '')!r}",
            )
    return [n for n in names if any(re.fullmatch(pattern, n) for pattern in recipe.exclude)]


def _read(path: Path) -> ModelProto:
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:
        raise StageError(f"cannot be quantized: {reason(error)}", where=str(path)) from None


@dataclass(frozen=True)
class Types:
    """Which 8-bit types the targets' CPUs want.

    `reduced_range`: weights of 7 bits, so that 16-bit sums of x86 CPUs without VNNI do not overflow.
    `signed`: activations as int8, which Arm multiplies with int8 weights as they are (onnxruntime).
    """

    reduced_range: bool
    signed: bool


def types(recipe: Recipe, targets: Iterable[Target] = ()) -> Types:
    """By what the targets' descriptors say, one file for all of them; without targets by this CPU."""
    machine = describe()
    here = (machine["architecture"], machine["isa"])
    cpus = [_cpu(target, here) for target in targets] or [here]
    overflows = any(arch == "x86_64" and not INT8_ISA & set(isa) for arch, isa in cpus)
    wanted = recipe.reduced_range
    return Types(
        reduced_range=overflows if wanted == "auto" else wanted == "on",
        signed=recipe.preset == "performance" or all(arch == "aarch64" for arch, _ in cpus),
    )


def _cpu(target: Target, here: tuple[str, list[str]]) -> tuple[str | None, list[str]]:
    """Architecture and instructions. Of another x86 CPU that nothing is known of, the least."""
    if target.isa is not None:
        return target.arch or here[0], list(target.isa)
    return here if target.transport == "local" else (target.arch, [])


def write(model: ModelProto, format: str, path: Path) -> tuple[Path, ...]:
    """Write the quantized model in one of the formats; returns the files."""
    import onnx

    if format == "onnx":
        with atomic_path(path) as temporary:
            onnx.save(model, temporary)
        return (path,)
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ir-") as folder, quiet():
        onnx.save(model, Path(folder) / "model.onnx")
        try:
            converted = openvino.convert_model(Path(folder) / "model.onnx")
        except Exception as error:
            raise StageError(
                f"OpenVINO cannot convert the INT8 model: {reason(error)}", where=str(path)
            ) from None
        openvino.save_model(converted, Path(folder) / path.name, compress_to_fp16=False)
        files = (path.with_suffix(".bin"), path)
        for file in files:
            (Path(folder) / file.name).replace(file)
    return (path, path.with_suffix(".bin"))
