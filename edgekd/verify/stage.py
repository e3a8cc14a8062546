"""Stage `verify`: every exported file, in its own runtime, against the PyTorch model it came from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.config.schema import Verify
from edgekd.distill.trainer import predict
from edgekd.errors import StageError
from edgekd.models import role as roles
from edgekd.models.role import accuracy
from edgekd.pipeline.stages import Context
from edgekd.profile.device.runtimes import RUNTIMES, Session, load
from edgekd.results import DeviceFileParity, ExportedFile, Parity, Role, VerifyReport
from edgekd.verify.device import RUNTIME, device_parity
from edgekd.verify.examples import pick, within
from edgekd.verify.parity import compare, worst

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset

_BATCH = 256
# Samples that are also compared at batch 1.
_SINGLE = 32


def run(context: Context) -> None:
    """Write `parity.json`, `logits.npz` with every file's logits on the test split, `examples.npz`.

    `examples.npz` has the raw `inputs` of a few samples that teacher and student disagree on, and
    their `positions` in the test split.
    Raises StageError, after all files were looked at, when one exceeds the tolerance.
    """
    dataset, settings = context.dataset, context.config.verify
    labels, classes = dataset.labels[dataset.test], len(dataset.classes)
    files = context.run.files
    torch_logits = {
        role: predict(roles.load(context.run, role, context.base), dataset, dataset.test).numpy()
        for role in get_args(Role)
    }
    logits = {f"pytorch/{role}": value for role, value in torch_logits.items()}
    results: list[Parity] = []
    with context.progress.task("verify", len(files)) as task:
        for file in files:
            for runtime in (name for name in RUNTIMES if file.format in RUNTIMES[name].formats):
                session = load(runtime, context.run.path / file.path, threads=1, precision="f32")
                answer = _logits(session, dataset, dataset.test, _BATCH)
                logits[f"{runtime}/{file.name}"] = answer
                reference = _trained(context) if file.trained else torch_logits[file.role]
                where = f"{file.path} in {runtime}"
                tolerance = _tolerance(settings, file)
                sample = min(settings.samples, len(labels))
                one_by_one = _logits(session, context.dataset, dataset.test[:sample][:_SINGLE], 1)
                # Devices feed one sample at a time: nothing may depend on the batch it is in.
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
                        teacher_agreement=float(
                            (answer.argmax(1) == torch_logits["teacher"].argmax(1)).mean()
                        ),
                        tolerance=tolerance,
                        passed=errors.max_relative <= tolerance,
                        accuracy=accuracy(answer.argmax(1), labels, classes),
                    )
                )
            task.advance(file=Path(file.path).name)
    device = _device(context, logits)
    _check(results)
    _check_device(device)
    VerifyReport(
        reference={
            role: accuracy(value.argmax(1), labels, classes) for role, value in torch_logits.items()
        },
        files=tuple(results),
        device=device,
    ).write(context.folder / "parity.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=labels, indices=dataset.test, **logits)  # type: ignore[arg-type]
    write_bytes(context.folder / "logits.npz", buffer.getvalue())
    _keep_examples(context, labels, logits)


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


def _tolerance(settings: Verify, file: ExportedFile) -> float:
    by_variant = {"int8": settings.int8_tolerance, "f16": settings.f16_tolerance}
    return by_variant.get(file.variant, settings.tolerance)


def _logits(session: Session, dataset: Dataset, indices: np.ndarray, batch: int) -> np.ndarray:
    chunks = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    return np.concatenate([session.run(dataset.tensor(chunk).numpy())[0] for chunk in chunks])


def _device(context: Context, logits: dict[str, np.ndarray]) -> tuple[DeviceFileParity, ...]:
    originals = {file.path: file for file in context.run.files}
    found = []
    for file in context.run.device_files:
        original = originals[file.made_from]
        own = logits[f"{RUNTIME[file.format]}/{original.name}"]
        tolerance = _tolerance(context.config.verify, original)
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
        batch = ", batch 1" if first.batch_one_error == first.max_error else ""
        raise StageError(
            f"its logits differ from PyTorch's by {first.max_error:.2e} of the largest logit; "
            f"at most {first.tolerance:g} is allowed ({len(failed)} of {len(results)} files fail)",
            where=f"{first.path} in {first.runtime}{batch}",
            fix="it is not the same function; if the difference is acceptable to you, "
            f"raise verify.{'' if first.variant == 'f32' else f'{first.variant}_'}tolerance",
        )
