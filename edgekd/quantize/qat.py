"""Distillation-aware QAT: the student goes on learning from the teacher, computed as in INT8."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data.views import Views
from edgekd.distill.method import FeatureMethod
from edgekd.distill.objective import Objective
from edgekd.distill.stage import _knowledge as teacher_knowledge
from edgekd.distill.trainer import predict, train
from edgekd.errors import StageError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.pipeline.stages import Context
from edgekd.profile.device.runtimes import RUNTIMES, load
from edgekd.quantize.fake_quantize import fake_quantized, frozen
from edgekd.quantize.qdq import with_integer_weights
from edgekd.quantize.recipes import Recipe
from edgekd.results import QatParity, QatReport
from edgekd.verify.parity import compare

if TYPE_CHECKING:
    from onnx import ModelProto

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
    teacher: nn.Module,
    recipe: Recipe,
    samples: np.ndarray,
    *,
    reduced_range: bool,
) -> Trained:
    """Fine-tune a fake-quantized copy of `student`, resumable from the stage's folder.

    `samples` are indices of the training split that the first ranges come from. The epoch is
    selected on the validation split.
    """
    config, dataset = context.config, context.dataset
    assert config.quantize is not None
    assert config.quantize.qat is not None
    model = fake_quantized(
        student, recipe, list(dataset.tensor(samples)[:, None]), reduced_range=reduced_range
    )
    before = _accuracy(model, context)
    objective = _objective(context)
    views = Views(dataset, config.data.augment, config.seed)
    knowledge = None
    if objective.needs_teacher:
        example = dataset.tensor(np.resize(dataset.train, 4))
        objective.prepare(model, teacher, example, config.seed)
        knowledge = teacher_knowledge(context, views, teacher, objective)
    checkpoint = context.folder / "qat-checkpoint.pt"
    history = train(
        model,
        dataset,
        views,
        objective,
        config.quantize.qat,
        seed=config.seed,
        checkpoint=checkpoint,
        progress=context.progress,
        name="student in INT8",
        teacher=knowledge,
    )
    checkpoint.unlink(missing_ok=True)
    report = QatReport(
        history=history,
        validation_f32=_accuracy(student, context),
        validation_before=before,
        validation_after=_accuracy(model, context),
    )
    return Trained(model, report)


def _objective(context: Context) -> Objective:
    """The distillation loss, less what would have to begin anew.

    Methods that only initialise are done; on features, their regressors were not kept.
    """
    distill = context.config.distill
    methods = tuple(
        method.model_copy(update={"warmup": 0})
        for method in distill.methods.entries
        if not method.alone and not isinstance(method, FeatureMethod)
    )
    left_out = [m.name for m in distill.methods.entries if m.name not in {k.name for k in methods}]
    if left_out:
        context.progress.say(f"  without {', '.join(left_out)}: it would have to begin anew")
    return Objective(distill.alpha or float(not methods), methods)


def _accuracy(model: nn.Module, context: Context) -> float:
    dataset = context.dataset
    labels = torch.from_numpy(dataset.labels[dataset.validation])
    right = predict(model, dataset, dataset.validation).argmax(1) == labels
    return float(right.double().mean())


def deployable(trained: Trained, context: Context) -> tuple[ModelProto, int | None]:
    """The trained model as ONNX with QuantizeLinear and DequantizeLinear, and its opset."""
    import onnx

    example = context.dataset.tensor(np.resize(context.dataset.train, 2))
    # Simplification would fold weights back to float32.
    config = context.config.export.model_copy(update={"simplify": False, "external_data": False})
    with tempfile.TemporaryDirectory(dir=context.folder, prefix=".qat-") as scratch:
        source = Source(
            frozen(trained.model, example),
            context.run.card("student"),
            example,
            Path(scratch) / "student.onnx",
        )
        exported = EXPORTERS.get("onnx")(source, Path(scratch), config)
        return with_integer_weights(onnx.load(exported.path)), exported.opset


def check_parity(
    trained: Trained, context: Context, files: dict[str, Path], tolerance: float
) -> tuple[QatParity, ...]:
    """Every file in its runtimes against the trained model, on validation samples.

    Raises StageError when an output differs by more than `tolerance` of the largest.
    """
    dataset = context.dataset
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


def test_logits(trained: Trained, context: Context) -> np.ndarray:
    """What verify holds the files to: logits (n, classes) of the final model on the test split."""
    return predict(trained.model, context.dataset, context.dataset.test).numpy()
