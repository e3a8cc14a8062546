"""Stage `verify`: every exported file, in its own runtime, against the model it came from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.artifacts import write_bytes
from edgekd.config.schema import Verify
from edgekd.distill.trainer import predict
from edgekd.errors import StageError
from edgekd.models import role
from edgekd.models.role import accuracy, accuracy_of
from edgekd.pipeline.stages import Context
from edgekd.profile.device.runtimes import RUNTIMES, Session, load
from edgekd.results import ExportedFile, Parity, VerifyReport
from edgekd.teachers.teacher import load as load_teacher
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
    teacher = load_teacher(context.run, context.base, dataset)
    student = role.load(context.run, "student", context.base)
    before = {
        "teacher": teacher.answers(dataset, dataset.test),
        "student": predict(student, dataset, dataset.test).numpy(),
    }
    known = np.isfinite(before["teacher"]).all(axis=1)
    logits = {f"pytorch/{role}": value for role, value in before.items()}
    if not teacher.exports:
        # It answers the same wherever the student runs.
        formats = {file.format for file in files}
        logits |= {
            f"{name}/teacher": before["teacher"]
            for name, runtime in RUNTIMES.items()
            if formats & set(runtime.formats)
        }
    results: list[Parity] = []
    with context.progress.task("verify", len(files)) as task:
        for file in files:
            for runtime in (name for name in RUNTIMES if file.format in RUNTIMES[name].formats):
                session = load(runtime, context.run.path / file.path, threads=1, precision="f32")
                answer = _logits(session, dataset, dataset.test, _BATCH)
                logits[f"{runtime}/{file.name}"] = answer
                reference = before[file.role]
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
                        teacher_agreement=_agreement(answer[known], before["teacher"][known]),
                        tolerance=tolerance,
                        passed=errors.max_relative <= tolerance,
                        accuracy=accuracy(answer.argmax(1), labels, classes),
                    )
                )
            task.advance(file=Path(file.path).name)
    _check(results)
    VerifyReport(
        reference={
            role: found
            for role, value in before.items()
            if (found := accuracy_of(value, dataset, dataset.test)) is not None
        },
        files=tuple(results),
    ).write(context.folder / "parity.json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=labels, indices=dataset.test, **logits)  # type: ignore[arg-type]
    write_bytes(context.folder / "logits.npz", buffer.getvalue())
    _keep_examples(context, labels, logits, known)


def _agreement(answers: np.ndarray, teacher: np.ndarray) -> float | None:
    return float((answers.argmax(1) == teacher.argmax(1)).mean()) if len(teacher) else None


def _keep_examples(
    context: Context, labels: np.ndarray, logits: dict[str, np.ndarray], known: np.ndarray
) -> None:
    dataset = context.dataset
    of_students = [v[known] for name, v in logits.items() if name.rpartition("/")[2] != "teacher"]
    teacher, most = logits["pytorch/teacher"][known], context.config.verify.examples
    positions = np.flatnonzero(known)[pick(labels[known], teacher, of_students, most)]
    positions = within(positions, dataset.inputs[0].nbytes)
    buffer = io.BytesIO()
    inputs = dataset.inputs[dataset.test[positions]]
    np.savez_compressed(buffer, positions=positions, inputs=inputs)
    write_bytes(context.folder / "examples.npz", buffer.getvalue())


def _tolerance(settings: Verify, file: ExportedFile) -> float:
    return settings.int8_tolerance if file.variant == "int8" else settings.tolerance


def _logits(session: Session, dataset: Dataset, indices: np.ndarray, batch: int) -> np.ndarray:
    chunks = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    return np.concatenate([session.run(dataset.tensor(chunk).numpy())[0] for chunk in chunks])


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
            f"raise verify.{'int8_tolerance' if first.variant == 'int8' else 'tolerance'}",
        )
