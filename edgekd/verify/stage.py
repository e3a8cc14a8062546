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
from edgekd.models.role import accuracy
from edgekd.pipeline.stages import Context
from edgekd.results import DeviceFileParity, Edge, LayerComparison, Parity, Role, VerifyReport
from edgekd.statistics import wilson
from edgekd.verify.device import RUNTIME, device_parity
from edgekd.verify.edges import (
    PYTORCH,
    RETRAINED,
    Verifier,
    check_edges,
    tolerance_for,
    torch_outputs,
)
from edgekd.verify.examples import pick, within
from edgekd.verify.inputs import FEW, cases
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

    `examples.npz` has the raw `inputs` of a few samples that teacher and student disagree on, and
    their `positions` in the test split.
    Raises StageError, after all files were looked at, when one exceeds the tolerance.
    """
    dataset, settings = context.dataset, context.config.verify
    labels, classes = dataset.labels[dataset.test], len(dataset.classes)
    files = context.run.files
    modules = {role: roles.load(context.run, role, context.base) for role in get_args(Role)}
    torch_logits = {
        role: predict(module, dataset, dataset.test).numpy() for role, module in modules.items()
    }
    logits = {f"pytorch/{role}": value for role, value in torch_logits.items()}
    verifier = _verifier(context, modules, torch_logits)
    precisions = lower_precisions(context.config, context.base)
    trained = _trained(context) if any(file.trained for file in files) else np.empty(0)
    if len(trained):
        verifier.know(RETRAINED, "student", trained[: settings.samples])
    results: list[Parity] = []
    edges: list[Edge] = []
    with context.progress.task("verify", len(files)) as task:
        for file in files:
            for runtime in runtimes_for(file.format):
                session = open_session(runtime, context.run.path / file.path)
                where = f"{file.path} in {runtime}"
                answer = _logits(session, dataset, dataset.test, max(settings.batches), where)
                logits[f"{runtime}/{file.name}"] = answer
                reference = trained if file.trained else torch_logits[file.role]
                tolerance = tolerance_for(settings, file.variant, session.precision)
                sample = min(settings.samples, len(labels))
                few = dataset.test[:sample][:FEW]
                # Devices feed one sample at a time: nothing may depend on the batch it is in.
                one_by_one = _logits(session, dataset, few, 1, where)
                known = answer[:sample]
                verifier.give(file.path, f"{runtime} {session.precision}", known, one_by_one)
                single = compare(reference[: len(one_by_one)], one_by_one, where=where)
                errors = worst(single, compare(reference[:sample], answer[:sample], where=where))
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
                        agreement=errors.agreement,
                        agreement_interval=wilson(round(errors.agreement * sample), sample),
                        teacher_agreement=float(
                            (answer.argmax(1) == torch_logits["teacher"].argmax(1)).mean()
                        ),
                        tolerance=tolerance,
                        passed=errors.max_relative <= tolerance,
                        accuracy=accuracy(answer.argmax(1), labels, classes),
                    )
                )
        # After all files have answered: what a file was made from is then known already.
        for file in files:
            edges += verifier.edges(file, precisions)
            task.advance(file=Path(file.path).name)
    device = _device(context, logits)
    _check(results)
    check_edges(edges)
    _check_device(device)
    VerifyReport(
        reference={
            role: accuracy(value.argmax(1), labels, classes) for role, value in torch_logits.items()
        },
        files=tuple(results),
        device=device,
        edges=tuple(edges),
        notes=tuple(dict.fromkeys(verifier.notes)),
    ).write(context.folder / "parity.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=labels, indices=dataset.test, **logits)  # type: ignore[arg-type]
    write_bytes(context.folder / "logits.npz", buffer.getvalue())
    _keep_examples(context, labels, logits)


def layers(run: Run, config: Config, base: Path) -> list[LayerComparison]:
    """Every file of the run against PyTorch, layer by layer, on a few test samples.

    Raises StageError for a run without ONNX files, which know what tensor is whose.
    """
    dataset = load_data(config.data, config.data.seed, base)
    x = dataset.tensor(dataset.test[:_LAYER_SAMPLES]).numpy()
    found = []
    for role in get_args(Role):
        mine = [file for file in run.files if file.role == role]
        whole = [file for file in mine if (file.format, file.variant) == ("onnx", "f32")]
        if not whole:
            raise StageError(
                "only ONNX files tell what operator belongs to what module, and this run has none",
                where=str(run.path),
                fix="add onnx to export.formats",
            )
        module, onnx = roles.load(run, role, base), run.path / whole[0].path
        found += [compare_layers(f, run.path, module, x, onnx, config.verify) for f in mine]
    return found


def _verifier(
    context: Context, modules: dict[Role, nn.Module], torch_logits: dict[Role, np.ndarray]
) -> Verifier:
    dataset, settings = context.dataset, context.config.verify
    samples = dataset.tensor(dataset.test[: settings.samples]).numpy()
    axes = dynamic_axes({"input": dataset.tensor(dataset.test[:1])}, context.config.export)
    free = sorted(axis - 1 for axis in axes["input"] if axis)
    verifier = Verifier(
        context.run.path,
        settings,
        context.run.files,
        lambda role, x: torch_outputs(modules[role], x),
        cases(samples, settings.batches, free),
    )
    for role, value in torch_logits.items():
        verifier.know(PYTORCH, role, value[: settings.samples])
    return verifier


def _keep_examples(context: Context, labels: np.ndarray, logits: dict[str, np.ndarray]) -> None:
    dataset = context.dataset
    students = [value for name, value in logits.items() if name.rpartition("/")[2] != "teacher"]
    positions = pick(labels, logits["pytorch/teacher"], students, context.config.verify.examples)
    positions = within(positions, dataset.inputs[0].nbytes)
    buffer = io.BytesIO()
    inputs = dataset.inputs[dataset.test[positions]]
    np.savez_compressed(buffer, positions=positions, inputs=inputs)
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


def _check_device(found: tuple[DeviceFileParity, ...]) -> None:
    failed = [parity for parity in found if not parity.passed]
    if failed:
        first = failed[0]
        error = "" if first.max_error is None else f", largest error {first.max_error:.2e}"
        raise StageError(
            f"does not answer as the file that it was made from: agreement {first.agreement:.2%}{error}, "
            f"at most {first.tolerance:g} is allowed",
            where=f"{first.path} in {first.runtime}",
            fix="set export.preprocessing to none and export.output to logits to do without it",
        )


def _check(results: list[Parity]) -> None:
    failed = [r for r in results if not r.passed]
    if failed:
        first = max(failed, key=lambda r: r.max_error)
        key = f"{first.variant}_tolerance" if first.variant != "f32" else "tolerance"
        batch = ", batch 1" if first.batch_one_error == first.max_error else ""
        raise StageError(
            f"its logits differ from PyTorch's by {first.max_error:.2e} of the largest logit; "
            f"at most {first.tolerance:g} is allowed ({len(failed)} of {len(results)} files fail)",
            where=f"{first.path} in {first.runtime}{batch}",
            fix="it is not the same function (edgekd verify --layers names the layer); if the "
            f"difference is acceptable to you, raise verify.{key}",
        )
