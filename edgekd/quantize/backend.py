"""Post-training static INT8 through NNCF, which serves ONNX and OpenVINO models alike."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.artifacts import atomic_path
from edgekd.errors import StageError, UsageError
from edgekd.profile.device.environment import describe
from edgekd.quantize.recipes import Recipe

# What multiplies 8-bit integers without overflow: with these no reduced range is needed.
_INT8_ISA = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}

# (inputs of one sample, its label)
Sample = tuple[np.ndarray, int]


def require() -> None:
    """Raises UsageError when NNCF is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise UsageError(
            "quantization needs NNCF, which is not installed",
            where="quantize",
            fix="pip install 'edgekd[quantize]'",
        )


def quantize(
    format: str,
    source: Path,
    destination: Path,
    recipe: Recipe,
    samples: list[np.ndarray],
    *,
    max_drop: float | None = None,
    validation: list[Sample] | None = None,
) -> tuple[Path, ...]:
    """Write the INT8 version of the model file `source`; returns the files written.

    `samples` are inputs (1, …) float32. With `max_drop` (a share) layers are reverted to float32,
    the most sensitive first, until top-1 accuracy on `validation` falls by no more than that.
    Raises StageError in one line when the model cannot be quantized.
    """
    require()
    with _quiet():
        import nncf

        try:
            model = _read(format, source)
            wrap = _FEED[format]
            settings = _settings(recipe)
            dataset = nncf.Dataset([wrap(x) for x in samples])
            if max_drop is None or validation is None:
                result = nncf.quantize(model, dataset, **settings, **_advanced(recipe))
            else:
                result = nncf.quantize_with_accuracy_control(
                    model,
                    dataset,
                    nncf.Dataset([(wrap(x), y) for x, y in validation], lambda item: item[0]),
                    _RUN[format],
                    max_drop=max_drop,
                    drop_type=nncf.DropType.ABSOLUTE,
                    advanced_quantization_parameters=_advanced(recipe)["advanced_parameters"],
                    **settings,
                )
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise StageError(
                f"cannot be quantized: {type(error).__name__}: {lines[0][:300]}", where=str(source)
            ) from None
        return _write(format, result, destination)


def _settings(recipe: Recipe) -> dict[str, Any]:
    import nncf

    return {
        "preset": nncf.QuantizationPreset(recipe.preset),
        "subset_size": recipe.samples,
        "model_type": nncf.ModelType(recipe.model_type) if recipe.model_type else None,
        "ignored_scope": nncf.IgnoredScope(patterns=recipe.exclude, validate=True)
        if recipe.exclude
        else None,
        "target_device": nncf.TargetDevice.CPU,
    }


def _advanced(recipe: Recipe) -> dict[str, Any]:
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    ranges = {
        "min-max": Ranges.MINMAX,
        "mean-min-max": Ranges.MEAN_MINMAX,
        "percentile": Ranges.MEAN_QUANTILE,
        "histogram": Ranges.HISTOGRAM,
    }
    return {
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if reduced_range(recipe) else OverflowFix.DISABLE,
            activations_range_estimator_params=ranges[recipe.range],
        )
    }


def reduced_range(recipe: Recipe) -> bool:
    """Whether weights get 7 bits, so that 16-bit sums of older x86 CPUs do not overflow."""
    if recipe.reduced_range != "auto":
        return recipe.reduced_range == "on"
    machine = describe()
    return machine["architecture"] == "x86_64" and not _INT8_ISA & set(machine["isa"])


def _read(format: str, path: Path) -> Any:
    if format == "onnx":
        import onnx

        return onnx.load(path)
    import openvino

    return openvino.Core().read_model(path)


def _write(format: str, model: Any, path: Path) -> tuple[Path, ...]:
    if format == "onnx":
        import onnx

        with atomic_path(path) as temporary:
            onnx.save(model, temporary)
        return (path,)
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    return (path, path.with_suffix(".bin"))


def _accuracy_onnx(model: Any, samples: Iterable[tuple[dict[str, np.ndarray], int]]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    right = [float(session.run(None, feed)[0].argmax() == label) for feed, label in samples]
    return sum(right) / len(right), right


def _accuracy_openvino(compiled: Any, samples: Iterable[Sample]) -> Any:
    right = [float(compiled(x)[0].argmax() == label) for x, label in samples]
    return sum(right) / len(right), right


_FEED: dict[str, Callable[[np.ndarray], Any]] = {
    "onnx": lambda x: x if isinstance(x, dict) else {"input": x},
    "openvino": lambda x: x,
}
_RUN: dict[str, Callable[..., Any]] = {"onnx": _accuracy_onnx, "openvino": _accuracy_openvino}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF without its progress bars, logs and telemetry."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            logging.getLogger("nncf").setLevel(logging.CRITICAL)
            yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
