"""Parity along every edge of the graph of artifacts: PyTorch → ONNX → IR → INT8, in every runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.config.schema import Verify
from edgekd.errors import StageError
from edgekd.profile.device.runtimes import Session
from edgekd.results import Edge, ExportedFile, InputCase, Role
from edgekd.statistics import wilson
from edgekd.verify.inputs import FEW, Case
from edgekd.verify.parity import Errors, compare
from edgekd.verify.sessions import one_line, open_session, outputs, runtimes_for

if TYPE_CHECKING:
    from torch import nn

PYTORCH = "PyTorch"
# The student after training with fake quantization; of it only the answers on the test split are kept.
RETRAINED = "PyTorch, trained in INT8"
_PRECISIONS = ("f16", "bf16")
# Constant and huge inputs make more of rounding, in every runtime: what they are there to find,
# such as another padding or an overflow, is far larger.
_EXTREME = 10
# Of `verify`, by variant or precision, from the finest to the coarsest.
_TOLERANCES = {
    "f32": "tolerance",
    "f16": "f16_tolerance",
    "bf16": "bf16_tolerance",
    "int8": "int8_tolerance",
    "int4": "int8_tolerance",
}


@dataclass(frozen=True)
class Hardest:
    """The kind of inputs that a file fails on most, and the batch `x` of it that differs most.

    `x` None: the file gives nothing for them that could be compared.
    """

    case: InputCase
    x: np.ndarray | None


@dataclass
class Verifier:
    """Compares files below `root`. `module` gives a role's PyTorch logits for a batch of inputs.

    `cases` are the inputs. Outputs are kept, so that a file which several others are made from
    computes them once. `notes` say what could not be compared here.
    """

    root: Path
    settings: Verify
    files: tuple[ExportedFile, ...]
    module: Callable[[Role, np.ndarray], np.ndarray]
    cases: list[Case]
    notes: list[str] = field(default_factory=list)
    # Whether outputs are logits of classes, of which one is the answer.
    top1: bool = True
    _known: dict[tuple[str, str, str], np.ndarray | str] = field(default_factory=dict)

    def know(self, model: str, role: Role, logits: np.ndarray) -> None:
        """The answers (n, classes) of a PyTorch model to the samples that all cases are made of."""
        for case in self.cases:
            if case.name.startswith("batch "):
                shape = (len(case.x), *logits.shape[1:])
                self._known[model, role, case.name] = np.resize(logits, shape)

    def give(self, path: str, computed_by: str, logits: np.ndarray, single: np.ndarray) -> None:
        """What a file gives is known already: for the first samples, and for a few one by one."""
        largest = self.cases[0]
        if len(logits) >= len(largest.x):
            self._known[path, computed_by, largest.name] = logits[: len(largest.x)]
        self._known[path, computed_by, "batch 1"] = single

    def edges(self, file: ExportedFile, precisions: Iterable[tuple[str, str]] = ()) -> list[Edge]:
        """Every comparison of one file.

        In the runtimes that it is meant for with PyTorch and with the file that it was made from;
        in others that open it, and in `precisions` (runtime, precision), with PyTorch.
        Raises StageError when a runtime that it is meant for does not open it.
        """
        own = runtimes_for(file.format)
        model = RETRAINED if file.trained else PYTORCH
        found = []
        for runtime in runtimes_for(file.format, all=True):
            try:
                session = open_session(runtime, self.root / file.path)
            except StageError as error:
                if runtime in own:
                    raise
                # Nobody is promised that it runs there.
                why = error.what.removeprefix("cannot be opened: ")
                self.notes.append(f"{runtime} does not open {file.path}: {why}")
                continue
            found.append(self._edge(file, runtime, session, model, whole=runtime in own))
            source = source_of(file, self.files)
            if source is not None and runtime in own:
                found.append(self._edge(file, runtime, session, source))
        for runtime, precision in precisions:
            lower = self._lower(file, runtime, precision) if runtime in own else None
            if lower is not None:
                found.append(self._edge(file, runtime, lower, model, whole=False))
        return found

    def hardest(self, file: ExportedFile) -> Hardest | None:
        """Where a file fails against PyTorch in its own runtime; None where it does not.

        Neither for files that were trained further: of what made them there are answers only.
        """
        if file.trained:
            return None
        runtime = runtimes_for(file.format)[0]
        session = open_session(runtime, self.root / file.path)
        edge = self._edge(file, runtime, session, PYTORCH)
        if edge.passed:
            return None
        case = next(case for case in self.cases if case.name == edge.worst.inputs)
        expected = self._known[PYTORCH, file.role, case.name]
        found = self._known[file.path, f"{runtime} {session.precision}", case.name]
        if isinstance(expected, str) or isinstance(found, str) or expected.shape != found.shape:
            return Hardest(edge.worst, None)
        errors = np.nan_to_num(np.abs(expected - found), nan=np.inf)
        errors = errors.reshape(len(errors), -1).max(axis=1)
        start = int(errors.argmax()) // case.batch * case.batch
        return Hardest(edge.worst, case.x[start : start + case.batch])

    def _lower(self, file: ExportedFile, runtime: str, precision: str) -> Session | None:
        try:
            return open_session(runtime, self.root / file.path, precision=precision)
        except ValueError as error:
            self.notes.append(f"not verified in {precision} on this machine: {error}")
            return None

    def _edge(
        self,
        file: ExportedFile,
        runtime: str,
        session: Session,
        source: ExportedFile | str,
        *,
        whole: bool = True,
    ) -> Edge:
        """Unless `whole`, one batch of each size is enough: for large networks each takes seconds."""
        tolerance = tolerance_for(self.settings, file.variant, session.precision)
        exact = file.variant == "f32" and session.precision not in _PRECISIONS
        scale = 0.0
        results = []
        for all_of_it in self.cases:
            case = all_of_it if whole else _shortened(all_of_it)
            reference = self._reference(file.role, source, all_of_it)
            if isinstance(reference, np.ndarray):
                reference = reference[: len(case.x)]
            found = self._found(file, runtime, session, case)
            judged = tolerance if case.real else _EXTREME * tolerance if exact else None
            made_of = source if isinstance(source, str) else "the file it was made from"
            result = judge(
                case, reference, found, judged, scale=scale, source=made_of, top1=self.top1
            )
            results.append(result)
            if scale == 0 and isinstance(reference, np.ndarray):
                # Logits of odd inputs may be near zero: the real ones' size is what counts.
                scale = float(np.abs(reference).max())
        return Edge(
            role=file.role,
            variant=file.variant,
            path=file.path,
            runtime=runtime,
            precision=session.precision,
            source=source if isinstance(source, str) else source.path,
            cases=tuple(results),
        )

    def _reference(self, role: Role, source: ExportedFile | str, case: Case) -> np.ndarray | str:
        if isinstance(source, ExportedFile):
            runtime = runtimes_for(source.format)[0]
            key = (source.path, f"{runtime} f32", case.name)
            if key not in self._known:
                session = open_session(runtime, self.root / source.path)
                self._found(source, runtime, session, case)
            return self._known[key]
        key = (source, role, case.name)
        if key not in self._known:
            if source == RETRAINED:
                return "not computed: of the model trained in INT8 only test answers are kept"
            try:
                self._known[key] = self.module(role, case.x)
            except Exception as error:
                self._known[key] = f"PyTorch fails too: {one_line(error)}"
        return self._known[key]

    def _found(
        self, file: ExportedFile, runtime: str, session: Session, case: Case
    ) -> np.ndarray | str:
        key = (file.path, f"{runtime} {session.precision}", case.name)
        if key not in self._known:
            where = f"{file.path} in {runtime}"
            try:
                self._known[key] = outputs(session, case.x, case.batch, where=where)
            except StageError as error:
                self._known[key] = error.what
        return self._known[key]


def _shortened(case: Case) -> Case:
    return replace(case, x=case.x[: max(case.batch, FEW)])


def judge(
    case: Case,
    reference: np.ndarray | str,
    found: np.ndarray | str,
    tolerance: float | None,
    *,
    scale: float = 0.0,
    source: str = "PyTorch",
    top1: bool = True,
) -> InputCase:
    """One comparison as a record; texts are why there are no logits.

    Where the reference has no finite logits nothing is asked of the file. `tolerance` None: its
    errors are told, whatever they are.
    """
    if isinstance(reference, str):
        return _told(case, tolerance, True, reference)
    if not np.isfinite(reference).all():
        return _told(case, tolerance, True, f"the logits of {source} are not finite")
    if isinstance(found, str):
        return _told(case, tolerance, False, found)
    try:
        errors = compare(reference, found, where="", scale=scale)
    except StageError as error:
        beyond = tolerance is None and found.shape == reference.shape
        return _told(case, tolerance, beyond, error.what)
    return _record(case, errors, tolerance, top1)


def _record(case: Case, errors: Errors, tolerance: float | None, top1: bool) -> InputCase:
    samples = len(case.x)
    return InputCase(
        inputs=case.name,
        samples=samples,
        max_abs_error=errors.max_abs,
        max_error=errors.max_relative,
        snr=errors.snr,
        cosine=errors.cosine,
        agreement=errors.agreement if top1 else None,
        agreement_interval=wilson(round(errors.agreement * samples), samples) if top1 else None,
        tolerance=tolerance,
        passed=tolerance is None or errors.max_relative <= tolerance,
    )


def _told(case: Case, tolerance: float | None, passed: bool, note: str) -> InputCase:
    return InputCase(
        inputs=case.name, samples=len(case.x), tolerance=tolerance, passed=passed, note=note
    )


def source_of(file: ExportedFile, files: Iterable[ExportedFile]) -> ExportedFile | None:
    """The float32 file that this one was made from; None for those straight from PyTorch."""
    if file.trained:
        return None
    for other in files:
        if other.role != file.role or other.variant != "f32" or other.path == file.path:
            continue
        same_format = file.variant != "f32" and other.format == file.format
        converted = (
            file.variant == "f32"
            and (file.format, other.format) == ("openvino", "onnx")
            and "PyTorch" not in (file.producer or "")
        )
        if same_format or converted:
            return other
    return None


def torch_outputs(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """The module's logits for inputs (n, …)."""
    import torch

    with torch.inference_mode():
        logits: np.ndarray = module(torch.from_numpy(x)).numpy()
    return logits


def tolerance_for(settings: Verify, variant: str, precision: str) -> float:
    """Of a file's weights and of what it is computed in, the one that allows more."""
    allowed: list[float] = [getattr(settings, _TOLERANCES[kind]) for kind in (variant, precision)]
    return max(allowed)


def setting_of(variant: str, precision: str) -> str:
    """The key of `verify` with the tolerance of what is coarser: a file's weights, or its computing."""
    return _TOLERANCES[max((variant, precision), key=[*_TOLERANCES].index)]
