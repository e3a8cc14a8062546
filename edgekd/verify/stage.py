"""Stage `verify`: every exported file, in its own runtime, against the PyTorch model it came from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.data.resolve import load as load_data
from edgekd.distill.trainer import predict
from edgekd.errors import StageError
from edgekd.export.dimensions import dynamic_axes
from edgekd.models import role as roles
from edgekd.models.role import accuracy_of
from edgekd.pipeline.stages import Context
from edgekd.results import DeviceFileParity, Edge, LayerComparison, Parity, Role, VerifyReport
from edgekd.statistics import wilson
from edgekd.tasks.task import CLASSIFICATION, of
from edgekd.teachers.teacher import Teacher, kind_of, load
from edgekd.verify.device import RUNTIME, device_parity
from edgekd.verify.edges import (
    PYTORCH,
    RETRAINED,
    Verifier,
    tolerance_for,
    torch_outputs,
)
from edgekd.verify.examples import pick, within
from edgekd.verify.failures import Failure, check, refusal
from edgekd.verify.inputs import FEW, Case, cases
from edgekd.verify.layers import compare_layers
from edgekd.verify.parity import compare, worst
from edgekd.verify.precisions import lower_precisions
from edgekd.verify.sessions import open_session, outputs, runtimes_for

if TYPE_CHECKING:
    from torch import nn

    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.pipeline.run import Run
    from edgekd.profile.device.runtimes import Session

# Whose activations are all kept in memory.
_LAYER_SAMPLES = 8


def run(context: Context) -> None:
    """Write `parity.json`, `logits.npz` with every file's logits on the test split, `examples.npz`.

    `examples.npz` has the raw `inputs` of a few samples that teacher and student disagree on, their
    `positions` in the test split and, where they were texts, `texts`.
    Raises StageError, after all files were looked at, when one exceeds the tolerance; every comparison
    is then in `verify-failed.json` in the run folder.
    """
    dataset, settings = context.dataset, context.config.verify
    labels, purpose = dataset.labels[dataset.test], of(dataset.task)
    files = context.run.files
    teacher = load(context.run, context.base, dataset)
    student = roles.load(context.run, "student", context.base)
    before: dict[Role, np.ndarray] = {
        "teacher": teacher.answers(dataset, dataset.test),
        "student": predict(student, dataset, dataset.test).numpy(),
    }
    answered = np.isfinite(before["teacher"]).reshape(len(labels), -1).all(axis=1)
    logits = {f"pytorch/{role}": value for role, value in before.items()}
    if not teacher.exports:
        # It answers the same wherever the student runs.
        ran = {runtime for file in files for runtime in runtimes_for(file.format)}
        logits |= {f"{runtime}/teacher": before["teacher"] for runtime in sorted(ran)}
    verifier = _verifier(context, teacher, student, before)
    precisions = lower_precisions(context.config, context.base)
    trained = _trained(context) if any(file.trained for file in files) else np.empty(0)
    if len(trained):
        verifier.know(RETRAINED, "student", trained[: settings.samples])
    results: list[Parity] = []
    edges: list[Edge] = []
    refused: list[Failure] = []
    with context.progress.task("verify", len(files)) as task:
        for file in files:
            for runtime in runtimes_for(file.format):
                session = open_session(runtime, context.run.path / file.path)
                where = f"{file.path} in {runtime}"
                answer = _logits(session, dataset, dataset.test, max(settings.batches), where)
                logits[f"{runtime}/{file.name}"] = answer
                reference = trained if file.trained else before[file.role]
                tolerance = tolerance_for(settings, file.variant, session.precision)
                sample = min(settings.samples, len(labels))
                few = dataset.test[:sample][:FEW]
                # Devices feed one sample at a time: nothing may depend on the batch it is in.
                one_by_one = _logits(session, dataset, few, 1, where)
                known = answer[:sample]
                verifier.give(file.path, f"{runtime} {session.precision}", known, one_by_one)
                try:
                    single = compare(reference[: len(one_by_one)], one_by_one, where=where)
                    whole = compare(reference[:sample], known, where=where)
                except StageError as error:
                    # The other files are looked at all the same.
                    refused.append(refusal(file.path, runtime, error))
                    continue
                errors = worst(single, whole)
                results.append(
                    Parity(
                        role=file.role,
                        format=file.format,
                        variant=file.variant,
                        runtime=runtime,
                        path=file.path,
                        precision=session.precision,
                        samples=sample,
                        max_abs_error=errors.max_abs,
                        max_error=errors.max_relative,
                        batch_one_error=single.max_relative,
                        snr=errors.snr,
                        cosine=errors.cosine,
                        agreement=errors.agreement if purpose.top1 else None,
                        agreement_interval=wilson(round(errors.agreement * sample), sample)
                        if purpose.top1
                        else None,
                        teacher_agreement=purpose.agreement(
                            answer[answered], before["teacher"][answered]
                        ),
                        tolerance=tolerance,
                        passed=errors.max_relative <= tolerance,
                        accuracy=purpose.score(answer, labels, len(dataset.classes)),
                    )
                )
        # After all files have answered: what a file was made from is then known already.
        for file in files:
            edges += verifier.edges(file, precisions)
            task.advance(file=Path(file.path).name)
    device = _device(context, logits)
    report = VerifyReport(
        reference={
            role: found
            for role, value in before.items()
            if (found := accuracy_of(value, dataset, dataset.test)) is not None
        },
        files=tuple(results),
        device=device,
        edges=tuple(edges),
        notes=tuple(dict.fromkeys(verifier.notes)),
    )
    check(report, files, context.run.failed("verify"), refused)
    report.write(context.folder / "parity.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=labels, indices=dataset.test, **logits)  # type: ignore[arg-type]
    write_bytes(context.folder / "logits.npz", buffer.getvalue())
    if dataset.task == CLASSIFICATION:
        _keep_examples(context, labels, logits, answered)


def layers(run: Run, config: Config, base: Path) -> list[LayerComparison]:
    """Every file of the run against PyTorch, layer by layer.

    On the inputs of `verify` that a file fails on most; on a few test samples where it passes.
    Raises StageError for a run without ONNX files, which know what tensor is whose.
    """
    dataset = load_data(config.data, config.data.seed, base)
    few = dataset.tensor(dataset.test[:_LAYER_SAMPLES]).numpy()
    network = "features" in kind_of(run.card("teacher").model).provides
    names: tuple[Role, ...] = get_args(Role) if network else ("student",)
    found = []
    for role in names:
        mine = [file for file in run.files if file.role == role]
        whole = [file for file in mine if (file.format, file.variant) == ("onnx", "f32")]
        if not whole:
            raise StageError(
                "only ONNX files tell what operator belongs to what module, and this run has none",
                where=str(run.path),
                fix="add onnx to export.formats",
            )
        module, onnx = roles.load(run, role, base), run.path / whole[0].path
        verifier = _layer_verifier(run, config, dataset, role, module)
        found += [
            compare_layers(file, run.path, module, few, onnx, config.verify, verifier.hardest(file))
            for file in mine
        ]
    return found


def _layer_verifier(
    run: Run, config: Config, dataset: Dataset, role: Role, module: nn.Module
) -> Verifier:
    """As `verify` compares the role's files, to find where they fail."""
    # One by one is fed whatever the batches are.
    inputs = _cases(dataset, config, [*config.verify.batches, 1])
    verifier = Verifier(
        run.path, config.verify, run.files, lambda _, x: torch_outputs(module, x), inputs,
        top1=of(dataset.task).top1,
    )  # fmt: skip
    samples = dataset.test[: config.verify.samples]
    verifier.know(PYTORCH, role, predict(module, dataset, samples).numpy())
    return verifier


def _verifier(
    context: Context, teacher: Teacher, student: nn.Module, before: dict[Role, np.ndarray]
) -> Verifier:
    settings = context.config.verify
    verifier = Verifier(
        context.run.path,
        settings,
        context.run.files,
        lambda role, x: torch_outputs(student, x) if role == "student" else teacher.outputs(x),
        _cases(context.dataset, context.config, settings.batches),
        top1=of(context.dataset.task).top1,
    )
    for role, value in before.items():
        verifier.know(PYTORCH, role, value[: settings.samples])
    return verifier


def _cases(dataset: Dataset, config: Config, batches: list[int]) -> list[Case]:
    samples = dataset.tensor(dataset.test[: config.verify.samples]).numpy()
    axes = dynamic_axes({"input": dataset.tensor(dataset.test[:1])}, config.export)
    free = sorted(axis - 1 for axis in axes["input"] if axis)
    return cases(samples, batches, free, tokens=dataset.input.tokens)


def _keep_examples(
    context: Context, labels: np.ndarray, logits: dict[str, np.ndarray], answered: np.ndarray
) -> None:
    dataset, most = context.dataset, context.config.verify.examples
    students = [v[answered] for name, v in logits.items() if name.rpartition("/")[2] != "teacher"]
    chosen = pick(labels[answered], logits["pytorch/teacher"][answered], students, most)
    positions = np.flatnonzero(answered)[chosen]
    positions = within(positions, dataset.inputs[0].nbytes)
    buffer = io.BytesIO()
    samples = dataset.test[positions]
    kept = {"positions": positions, "inputs": dataset.inputs[samples]}
    if dataset.texts is not None:
        kept["texts"] = np.array([dataset.texts[i] for i in samples], np.str_)
    np.savez_compressed(buffer, **kept)
    write_bytes(context.folder / "examples.npz", buffer.getvalue())


def _trained(context: Context) -> np.ndarray:
    """The answers of the student that was trained further with fake quantization."""
    with np.load(context.run.path / "quantized/trained.npz", allow_pickle=False) as arrays:
        logits: np.ndarray = arrays["logits"]
    return logits


def _logits(
    session: Session, dataset: Dataset, indices: np.ndarray, batch: int, where: str
) -> np.ndarray:
    chunks = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    return np.concatenate(
        [outputs(session, dataset.tensor(c).numpy(), batch, where=where) for c in chunks]
    )


def _device(context: Context, logits: dict[str, np.ndarray]) -> tuple[DeviceFileParity, ...]:
    originals = {file.path: file for file in context.run.files}
    found = []
    for file in context.run.device_files:
        original = originals[file.made_from]
        own = logits[f"{RUNTIME[file.format]}/{original.name}"]
        tolerance = tolerance_for(context.config.verify, original.variant, "f32")
        found.append(device_parity(file, context.run.path, context.dataset, own, tolerance))
    return tuple(found)
