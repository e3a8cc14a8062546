"""The steps from PyTorch to the deployed files, as rows of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekd.report.checks import agreement_text
from edgekd.results import Edge, InputCase, Verdict, VerifyReport

# What cases of real samples are called.
_REAL = ("batch ", "size ")


@dataclass(frozen=True)
class Row:
    """One edge in words: errors of real samples and of extreme inputs, and where the worst are."""

    source: str
    path: str
    runtime: str
    precision: str
    real: str
    real_where: str
    snr: str
    agreement: str
    extreme: str
    extreme_where: str
    verdict: Verdict


def edge_rows(report: VerifyReport | None) -> tuple[Row, ...]:
    """In the order of the report."""
    return tuple(_row(edge) for edge in report.edges) if report else ()


def edge_batches(report: VerifyReport | None) -> str:
    """Such as "256, 1, 3 and 7"."""
    names = [
        case.inputs.removeprefix("batch ")
        for edge in (report.edges[:1] if report else ())
        for case in edge.cases
        if case.inputs.startswith("batch ")
    ]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _row(edge: Edge) -> Row:
    main = edge.cases[0]
    real, where = _worst(case for case in edge.cases if case.inputs.startswith(_REAL))
    extreme, beyond = _worst(case for case in edge.cases if not case.inputs.startswith(_REAL))
    return Row(
        source=edge.source,
        path=edge.path,
        runtime=edge.runtime,
        precision=edge.precision,
        real=real,
        real_where=where,
        snr="∞" if main.snr is None else f"{main.snr:.0f} dB",
        agreement=agreement_text(main),
        extreme=extreme,
        extreme_where=beyond,
        verdict="pass" if edge.passed else "fail",
    )


def _worst(cases: Iterable[InputCase]) -> tuple[str, str]:
    """The largest error, and with which inputs; what failed without one comes first."""
    found = sorted(
        cases, key=lambda c: (not c.passed, c.max_error if c.max_error is not None else -1)
    )
    if not found:
        return "–", ""
    case = found[-1]
    if case.max_error is None:
        return "none", f"{case.inputs}: {case.note}"
    limit = "not judged" if case.tolerance is None else f"limit {case.tolerance:g}"
    return f"{case.max_error:.2e}", f"{case.inputs}, {limit}"
