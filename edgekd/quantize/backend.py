"""What quantizes a model file: one file per library in `backends/`, registered by `@backend`."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekd.errors import EdgekdError, StageError, UsageError
from edgekd.quantize.arithmetic import arithmetic as suited
from edgekd.quantize.recipes import Recipe
from edgekd.registry import Registry
from edgekd.results import Arithmetic

# Of a model's only input, or by name where there are several.
Inputs = np.ndarray | dict[str, np.ndarray]
# (inputs of one sample, its label)
Sample = tuple[Inputs, int]
# So many nodes are named in an error.
_NAMED = 20


@dataclass(frozen=True)
class Source:
    """A model in float32: its file, and the same model as ONNX where there is such a file.

    `scratch` is a folder for temporary files, whose names begin with a dot; None: the system's.
    """

    format: str
    path: Path
    onnx: Path | None = None
    scratch: Path | None = None


class Quantized(Protocol):
    """A calibrated model, of which any choice of layers can be written in INT8."""

    # Names of what can be left in float32 on its own, in the order of the graph.
    layers: tuple[str, ...]
    # The library, and what it was told to do.
    producer: str
    notes: tuple[str, ...]

    def write(self, path: Path, float32: Collection[str] = ()) -> tuple[Path, ...]:
        """Write the model with the layers `float32` left as they are; returns the files."""


Backend = Callable[[Source, Recipe, Sequence[Inputs], Arithmetic], Quantized]
BACKENDS: Registry[Backend] = Registry("quantization backend", "edgekd.quantize.backends")
backend = BACKENDS.register


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
    samples: Sequence[Inputs],
    *,
    onnx: Path | None = None,
) -> tuple[Path, ...]:
    """Write the INT8 version of the model file `source`, every layer of it; returns the files.

    `samples` are inputs (1, …) float32, or dictionaries of them for models with several. Types suit
    this machine. `onnx`: the same model as ONNX, where `source` is not. Raises like `prepare`.
    """
    files = Source(format, source, source if format == "onnx" else onnx)
    return prepare(files, recipe, samples, suited(recipe)).write(destination)


def prepare(
    source: Source,
    recipe: Recipe,
    samples: Sequence[Inputs],
    types: Arithmetic,
    *,
    by: str | None = None,
) -> Quantized:
    """Calibrate a model with `samples`, through the backend `by` or the first of `usable`.

    Raises UsageError for a recipe that the backend does not serve, StageError in one line when the
    model cannot be quantized.
    """
    require()
    name = by or usable(source, recipe)[0]
    try:
        with quiet():
            return BACKENDS.get(name)(source, recipe, samples, types)
    except EdgekdError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise StageError(
            f"cannot be quantized: {type(error).__name__}: {lines[0][:300]}",
            where=str(source.path),
            fix="quantize.recipe names a calibration recipe: another backend there, or the layer "
            "in exclude, may help",
        ) from None


def usable(source: Source, recipe: Recipe) -> list[str]:
    """Backends that can do what the recipe asks of this file, the usual one first.

    Raises UsageError when its backend cannot.
    """
    reasons = {name: _obstacle(name, source, recipe) for name in ("nncf", "onnxruntime")}
    able = [name for name, reason in reasons.items() if reason is None]
    if recipe.backend == "auto" and able:
        return able
    if recipe.backend in able:
        return [recipe.backend]
    reason = reasons.get(recipe.backend) or "; ".join(filter(None, reasons.values()))
    raise UsageError(
        f"backend {recipe.backend}: {reason}",
        where=f"calibration recipe {recipe.name!r}",
        fix=f"write backend: auto, which takes {able[0]} here"
        if able
        else "choose another method or range",
    )


def _obstacle(name: str, source: Source, recipe: Recipe) -> str | None:
    """Why a backend cannot serve a recipe."""
    if name == "nncf":
        if recipe.method != "static" and source.format == "onnx":
            return f"NNCF does not do {recipe.method} in ONNX files that ONNX Runtime executes"
        if recipe.method == "static" and recipe.range == "entropy":
            return "NNCF has no entropy calibration"
        return None
    if recipe.method != "static":
        reads = source.format == "onnx"
        return None if reads else f"OpenVINO does not read ONNX Runtime's {recipe.method} files"
    if source.onnx is None:
        return "ONNX Runtime quantizes ONNX models: add onnx to export.formats"
    if recipe.range not in ("min-max", "mean-min-max", "percentile", "entropy"):
        return f"ONNX Runtime has no range {recipe.range}"
    if recipe.bias_correction == "accurate":
        return "ONNX Runtime does not correct biases"
    if recipe.smooth_quant:
        return "ONNX Runtime's SmoothQuant needs Intel Neural Compressor"
    return None


def excluded(recipe: Recipe, names: Sequence[str], *, where: Path) -> list[str]:
    """Of a file's nodes those that the recipe leaves in float32.

    Raises UsageError when it names some and none is there.
    """
    found = [n for n in names if any(re.fullmatch(pattern, n) for pattern in recipe.exclude)]
    if recipe.exclude and not found:
        some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        raise UsageError(
            f"exclude: no node of {where.name} is called as in {recipe.exclude}",
            where=f"calibration recipe {recipe.name!r}",
            fix=f"its nodes: {some}",
        )
    return found


def feeds(
    samples: Sequence[Inputs], inputs: Mapping[str, Sequence[int | None]], *, where: Path
) -> list[dict[str, np.ndarray]]:
    """The samples by input name, as arrays that the model takes.

    `inputs` has the shape of every input, None where a size is free. Raises StageError when there
    are none, or one has another shape or values that are no numbers.
    """
    if not samples:
        raise StageError(
            "there are no calibration samples", where=str(where), fix="check data.source"
        )
    made = []
    for position, sample in enumerate(samples):
        feed = sample if isinstance(sample, dict) else {next(iter(inputs)): sample}
        if feed.keys() != inputs.keys():
            raise StageError(
                f"calibration sample {position} has the inputs {sorted(feed)}, the model {sorted(inputs)}",
                where=str(where),
            )
        for name, shape in inputs.items():
            value = feed[name]
            same = len(shape) == value.ndim and all(
                size in (None, own) for size, own in zip(shape, value.shape, strict=True)
            )
            if not same:
                wanted = " × ".join("any" if size is None else str(size) for size in shape)
                raise StageError(
                    f"calibration sample {position} has the shape "
                    f"{' × '.join(map(str, value.shape))}, but the input {name!r} takes {wanted}",
                    where=str(where),
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise StageError(
                    f"calibration sample {position} has values that are not finite",
                    where=str(where),
                    fix="ranges cannot be made of NaN or infinity: clean the training data",
                )
        made.append(feed)
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars, logs and warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def read(format: str, path: Path) -> Any:
    """An onnx.ModelProto or openvino.Model."""
    if format == "onnx":
        import onnx

        model = onnx.load(path)
        onnx.checker.check_model(model)
        return model
    import openvino

    with path.open("rb") as file:
        # OpenVINO asks all its frontends about what is none, which say so on the terminal.
        if not file.read(64).lstrip().startswith(b"<"):
            raise ValueError("it is not an OpenVINO IR")
    return openvino.Core().read_model(path)


def input_shapes(model: Any) -> dict[str, list[int | None]]:
    """By input name; None where a size is free."""
    if hasattr(model, "graph"):
        constants = {tensor.name for tensor in model.graph.initializer}
        return {
            entry.name: [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in entry.type.tensor_type.shape.dim
            ]
            for entry in model.graph.input
            if entry.name not in constants
        }
    return {
        port.any_name: [d.get_length() if d.is_static else None for d in port.partial_shape]
        for port in model.inputs
    }


def save(model: Any, path: Path) -> tuple[Path, ...]:
    """Write an onnx.ModelProto or openvino.Model; whole or not at all."""
    from edgekd.artifacts import atomic_files, atomic_path

    if hasattr(model, "graph"):
        import onnx

        with atomic_path(path) as temporary:
            onnx.save(model, temporary)
        return (path,)
    import openvino

    parts = path, path.with_suffix(".bin")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files(path.parent, [part.name for part in parts]) as folder:
        openvino.save_model(model, folder / path.name, compress_to_fp16=False)
    return parts
