"""What of a comparison fails, in the order in which files are made, and the error that says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import StageError
from edgekd.results import (
    QUANTIZED,
    DeviceFileParity,
    Edge,
    ExportedFile,
    InputCase,
    Parity,
    Variant,
    VerifyReport,
)
from edgekd.verify.edges import PYTORCH, RETRAINED, setting_of, source_of

# Other failures that the error tells.
_MOST = 5
_RANGES = (
    "calibrate with more samples or another range (quantize.recipe), or keep sensitive layers in "
    "float32 (quantize.max_drop)"
)


@dataclass(frozen=True)
class Failure:
    """A comparison that failed: of `path` in `runtime`. `short` is it in a few words."""

    path: str
    runtime: str
    what: str
    where: str
    fix: str
    short: str


def check(
    report: VerifyReport, files: Iterable[ExportedFile], log: Path, refused: Iterable[Failure] = ()
) -> None:
    """Raises StageError that names what failed first on the way from PyTorch to the device, at its worst.

    What comes later is made from that. `log` is written then, with every comparison. `refused` are
    files whose logits could not be compared at all.
    """
    failed = failures(report, tuple(files), refused)
    if not failed:
        return
    report.write(log)
    first, others = failed[0], failed[1:]
    what = first.what
    if others:
        told = [failure.short for failure in others[:_MOST]]
        if len(others) > _MOST:
            told.append(f"{len(others) - _MOST} more")
        count = "1 other comparison fails" if len(others) == 1 else f"{len(others)} others fail"
        what += f"; {count}: {', '.join(told)}"
    raise StageError(what, where=first.where, fix=f"{first.fix}\n  every comparison is in {log}")


def failures(
    report: VerifyReport, files: tuple[ExportedFile, ...], refused: Iterable[Failure] = ()
) -> list[Failure]:
    """All of them, PyTorch → ONNX → IR → INT8 → device files; a file's own runtime before others."""
    found = [_of_edge(edge) for edge in report.edges if not edge.passed]
    seen = {(failure.path, failure.runtime) for failure in found}
    # Fed all of the test split, and one by one: nearly always the same.
    whole = [*refused, *(_of_file(parity) for parity in report.files if not parity.passed)]
    found += [failure for failure in whole if (failure.path, failure.runtime) not in seen]
    steps = {file.path: _steps(file, files) for file in files}
    found.sort(key=lambda failure: steps[failure.path])
    return found + list(_of_devices(report.device))


def refusal(path: str, runtime: str, error: StageError) -> Failure:
    """A file whose logits are not finite, or of another shape."""
    return Failure(
        path=path,
        runtime=runtime,
        what=error.what,
        where=f"{path} in {runtime}",
        fix="look at it layer by layer: edgekd verify --layers",
        short=f"{path} in {runtime} {error.what}",
    )


def _steps(file: ExportedFile, files: tuple[ExportedFile, ...]) -> tuple[int, int]:
    """How far a file is from PyTorch: coarser ones after all that are float32."""
    source = source_of(file, files)
    return (0 if file.variant == "f32" else 1, 0 if source is None else 1)


def _of_edge(edge: Edge) -> Failure:
    case = edge.worst
    key = f"verify.{setting_of(edge.variant, edge.precision)}"
    if case.max_error is None:
        what, fix = case.note, "look at it layer by layer: edgekd verify --layers"
    else:
        what = (
            f"its logits differ from those of {edge.source} by {case.max_error:.2e} of the largest; "
            f"at most {case.tolerance:g} is allowed"
        )
        fix = advice(edge.variant, key, edge.source)
    return Failure(
        path=edge.path,
        runtime=edge.runtime,
        what=what,
        where=f"{edge.path} in {edge.runtime}, {edge.precision}, {case.inputs}",
        fix=fix,
        short=_short(edge, case),
    )


def _short(edge: Edge, case: InputCase) -> str:
    source = "" if edge.source in (PYTORCH, RETRAINED) else f" from {edge.source}"
    error = "" if case.max_error is None else f" by {case.max_error:.1e} (limit {case.tolerance:g})"
    precision = "" if edge.precision == "f32" else f", {edge.precision}"
    return f"{edge.path} in {edge.runtime}{precision}{source}{error}"


def _of_file(parity: Parity) -> Failure:
    batch = ", batch 1" if parity.batch_one_error == parity.max_error else ""
    where = f"{parity.path} in {parity.runtime}{batch}"
    return Failure(
        path=parity.path,
        runtime=parity.runtime,
        what=f"its logits differ from those of PyTorch by {parity.max_error:.2e} of the largest; "
        f"at most {parity.tolerance:g} is allowed",
        where=where,
        fix=advice(
            parity.variant, f"verify.{setting_of(parity.variant, parity.precision)}", PYTORCH
        ),
        short=f"{where} by {parity.max_error:.1e} (limit {parity.tolerance:g})",
    )


def advice(variant: Variant, key: str, source: str) -> str:
    """What to do about a file that differs too much from `source`."""
    accept = f"if the difference is acceptable to you, raise {key}"
    if variant not in QUANTIZED:
        return f"edgekd verify --layers looks for the layer; {accept}"
    # Of what was trained in INT8 every layer is known to bear it.
    return accept if source == RETRAINED else f"{_RANGES}; {accept}"


def _of_devices(found: Iterable[DeviceFileParity]) -> Iterator[Failure]:
    for parity in found:
        if parity.passed:
            continue
        error = "" if parity.max_error is None else f", largest error {parity.max_error:.2e}"
        where = f"{parity.path} in {parity.runtime}"
        yield Failure(
            path=parity.path,
            runtime=parity.runtime,
            what="does not answer as the file that it was made from: agreement "
            f"{parity.agreement:.2%}{error}, at most {parity.tolerance:g} is allowed",
            where=where,
            fix="set export.preprocessing to none and export.output to logits to do without it",
            short=f"{where}, agreement {parity.agreement:.2%}",
        )
