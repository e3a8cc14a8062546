"""Distillation-aware QAT: the student goes on learning from the teacher, computed as in INT8."""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.artifacts import write_bytes
from edgekd.distill.method import FeatureMethod
from edgekd.distill.objective import Objective, hard_loss
from edgekd.distill.trainer import predict
from edgekd.distill.workshop import CHECKPOINT, Workshop
from edgekd.errors import StageError, UsageError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.pipeline.stages import Context
from edgekd.profile.device.runtimes import RUNTIMES, load
from edgekd.quantize.backend import quiet, save
from edgekd.quantize.fake_quantize import fake_quantized, frozen, load_operators
from edgekd.quantize.recipes import Recipe
from edgekd.results import Arithmetic, ExportedFile, QatParity, QatReport
from edgekd.tasks.task import of
from edgekd.verify.parity import compare

if TYPE_CHECKING:
    from onnx import ModelProto

# Where the exporter notes the module that a node is of; the profile reads it.
_MODULE = "pkg.torch.onnx.name_scopes"
# The most validation samples that the files are compared with the trained model on.
_COMPARED = 512


@dataclass(frozen=True)
class Trained:
    """The fake-quantized model after training, in evaluation mode, and how it got there."""

    model: nn.Module
    report: QatReport


def train_quantized(
    context: Context,
    student: nn.Module,
    recipe: Recipe,
    chosen: np.ndarray,
    types: Arithmetic,
) -> Trained:
    """Fine-tune a fake-quantized copy of `student`, resumable from the stage's folder.

    `chosen` are indices of the training split that the first ranges come from. The epoch is
    selected on the validation split. Raises UsageError for recipes that do not quantize activations.
    """
    config, dataset = context.config, context.dataset
    assert config.quantize is not None
    assert config.quantize.qat is not None
    if recipe.method != "static":
        raise UsageError(
            f"trains with static INT8; the recipe {recipe.name!r} is {recipe.method}",
            where="quantize.qat",
            fix="choose a quantize.recipe with method: static, or qat: null",
        )
    recipe = _used(recipe, context)
    load_operators()
    model = fake_quantized(student, recipe, list(dataset.tensor(chosen)[:, None]), types)
    before = _accuracy(model, context)
    untrained = {name: value.clone() for name, value in model.state_dict().items()}
    workshop = Workshop(context)
    objective = _objective(workshop)
    scheme = config.distill.scheme.entry.name
    if objective.needs_teacher and scheme != "offline":
        workshop.say(f"in INT8 the run's own teacher teaches, not what scheme {scheme} made")
    # The student has been examined; a step further is no new distillation.
    workshop.config = workshop.config.model_copy(update={"doctor": False})
    history = workshop.train(
        "student in INT8", model, objective, training=config.quantize.qat,
        teacher=workshop.teacher if objective.needs_teacher else None,
    )  # fmt: skip
    (context.folder / CHECKPOINT).unlink(missing_ok=True)
    after = _accuracy(model, context)
    # As epochs are selected: by more than chance.
    kept = after >= before - of(dataset.task).standard_error(before, len(dataset.validation))
    if not kept:
        context.progress.say(
            f"  warning: training in INT8 took accuracy on the validation split from {before:.2%} to "
            f"{after:.2%}: what it began with is kept; lower quantize.qat.learning_rate"
        )
        model.load_state_dict(untrained)
    report = QatReport(
        history=history,
        validation_f32=_accuracy(student, context),
        validation_before=before,
        validation_after=after,
        kept=kept,
    )
    return Trained(model, report)


def _used(recipe: Recipe, context: Context) -> Recipe:
    """The recipe without what training every layer with fake quantization has no use for."""
    unused = {
        key: Recipe.model_fields[key].default for key in ("exclude", "smooth_quant", "backend")
    }
    given = [key for key, value in unused.items() if getattr(recipe, key) != value]
    if given:
        context.progress.say(
            f"  warning: qat trains every layer itself and does not use the recipe's {', '.join(given)}"
        )
    return recipe.model_copy(update=unused)


def _objective(workshop: Workshop) -> Objective:
    """The distillation loss, less what would have to begin anew.

    Methods that only initialise are done; on features, their regressors were not kept.
    """
    alpha, entries = workshop.recipe
    methods = tuple(
        method.model_copy(update={"warmup": 0})
        for method in entries
        if not method.alone and not isinstance(method, FeatureMethod)
    )
    left_out = [m.name for m in entries if m.name not in {k.name for k in methods}]
    if left_out:
        workshop.say(f"without {', '.join(left_out)}: it would have to begin anew")
    hard = hard_loss(workshop.dataset)
    return Objective(alpha or float(not methods), methods, hard)


def _accuracy(model: nn.Module, context: Context) -> float:
    dataset = context.dataset
    found = predict(model, dataset, dataset.validation).numpy()
    return of(dataset.task).value(found, dataset.labels[dataset.validation])


def deploy(
    trained: Trained, context: Context, sources: list[ExportedFile], started: float
) -> tuple[list[ExportedFile], QatReport]:
    """Write the trained model in the formats of `sources` and hold every file to it.

    Also `trained.npz`: its logits (n, classes) on the test split, which verify holds the files to.
    Raises StageError when a file is another function.
    """
    folder, dataset = context.folder, context.dataset
    onnx_name = "student-int8.onnx"
    formats = [source.format for source in sources]
    files: list[ExportedFile] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".qat-") as scratch:
        onnx_file = (folder if "onnx" in formats else Path(scratch)) / onnx_name
        opset = _write_onnx(trained, context, Path(scratch), onnx_file)
        for format in formats:
            path: Path = onnx_file
            parts: tuple[Path, ...] = (path,)
            if format == "openvino":
                path = folder / "student-int8.xml"
                parts = _write_openvino(onnx_file, path)
            files.append(
                ExportedFile(
                    role="student",
                    format=format,
                    variant="int8",
                    path=f"quantized/{path.name}",
                    files=tuple(f"quantized/{part.name}" for part in parts),
                    size=sum(part.stat().st_size for part in parts),
                    seconds=round(time.monotonic() - started, 3),
                    opset=opset if format == "onnx" else None,
                    producer=f"edgekd qat, {'torch.onnx' if format == 'onnx' else 'openvino'}",
                    trained=True,
                )
            )
        paths = {file.format: folder / Path(file.path).name for file in files}
        parity = check_parity(trained, context, paths)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=predict(trained.model, dataset, dataset.test).numpy())
    write_bytes(folder / "trained.npz", buffer.getvalue())
    report = trained.report.model_copy(update={"parity": parity})
    context.progress.say(
        f"  accuracy on the validation split: {report.validation_f32:.2%} in float32, "
        f"{report.validation_before:.2%} in INT8, {report.validation_after:.2%} trained further"
    )
    return files, report


def _write_onnx(trained: Trained, context: Context, scratch: Path, path: Path) -> int | None:
    """The trained model with QuantizeLinear and DequantizeLinear; returns its opset."""
    import onnx

    example = context.dataset.tensor(np.resize(context.dataset.train, 2))
    # Simplification would fold the weights back to float32.
    config = context.config.export.model_copy(update={"simplify": False, "external_data": False})
    source = Source(
        frozen(trained.model, example),
        context.run.card("student"),
        example,
        scratch / "student.onnx",
    )
    exported = EXPORTERS.get("onnx")(source, scratch, config)
    save(with_integer_weights(onnx.load(exported.path)), path)
    return exported.opset


def _write_openvino(onnx_file: Path, path: Path) -> tuple[Path, ...]:
    import openvino

    try:
        with quiet():
            return save(openvino.convert_model(onnx_file), path)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise StageError(
            f"OpenVINO cannot convert the INT8 model: {lines[-1][:300]}", where=str(path)
        ) from None


def with_integer_weights(model: ModelProto) -> ModelProto:
    """A copy with every quantized constant stored as the integers that it becomes.

    Of what the exporter noted on nodes only the module is kept: traces are longer than small weights.
    """
    import onnx
    from onnx import numpy_helper

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in constants:
            kept.append(node)
            continue
        weight, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if d == axis else 1 for d in range(weight.ndim)] if scale.ndim else []
        # As QuantizeLinear is defined: half to even, then the zero point, then saturation.
        levels = np.rint(weight / scale.reshape(shape)) + zero.reshape(shape)
        limits = np.iinfo(zero.dtype)
        integers = levels.clip(limits.min, limits.max).astype(zero.dtype)
        graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
    used = {name for node in kept for name in node.input} | {o.name for o in graph.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    del graph.value_info[:]
    for node in graph.node:
        kept_notes = [entry for entry in node.metadata_props if entry.key == _MODULE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept_notes)
    return copied


def check_parity(
    trained: Trained, context: Context, files: dict[str, Path]
) -> tuple[QatParity, ...]:
    """Every file in its runtimes against the trained model, on validation samples.

    Raises StageError when an output differs by more than `verify.int8_tolerance` of the largest.
    """
    dataset, tolerance = context.dataset, context.config.verify.int8_tolerance
    inputs = dataset.tensor(dataset.validation[:_COMPARED])
    expected = _outputs(trained.model, inputs)
    found: list[QatParity] = []
    for format, path in files.items():
        for runtime in (name for name in RUNTIMES if format in RUNTIMES[name].formats):
            answer = load(runtime, path, threads=1, precision="f32").run(inputs.numpy())[0]
            where = f"{path.name} in {runtime}"
            errors = compare(expected, answer, where=where)
            found.append(
                QatParity(
                    format=format,
                    runtime=runtime,
                    samples=len(inputs),
                    max_error=errors.max_relative,
                    snr=errors.snr,
                    agreement=errors.agreement,
                )
            )
            if errors.max_relative > tolerance:
                raise StageError(
                    f"its logits differ from the fake-quantized model's by {errors.max_relative:.2e} "
                    f"of the largest; at most {tolerance:g} is allowed",
                    where=where,
                    fix="if the difference is acceptable to you, raise verify.int8_tolerance",
                )
    return tuple(found)


def _outputs(model: nn.Module, inputs: Tensor) -> np.ndarray:
    with torch.inference_mode():
        outputs: np.ndarray = model(inputs).numpy()
    return outputs
