"""Budgets and parity in words, the same on the terminal and in the HTML report."""

from __future__ import annotations

from edgekd.config.schema import dimension
from edgekd.report.comparison import Value
from edgekd.results import SCORES, Check, Edge, GateReport, InputCase, Parity, Verdict, VerifyReport

_WORDS: dict[Verdict, str] = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive"}
_NAMES = {
    "latency_p50": "latency p50",
    "latency_p90": "latency p90",
    "latency_p95": "latency p95",
    "latency_p99": "latency p99",
    **SCORES,
    **{f"{metric}_drop": f"{score} drop" for metric, score in SCORES.items()},
    "class_recall": "recall of every class",
    "latency_vs_baseline": "latency against the baseline",
    "accuracy_vs_baseline": "accuracy drop against the baseline",
    "memory_vs_baseline": "memory against the baseline",
    "size_vs_baseline": "file size against the baseline",
    "memory": "peak memory, model",
    "memory_ratio": "memory ratio",
    "size": "file size",
    "agreement": "agreement with the teacher",
    "parity_error": "parity error",
}


def verdict_word(verdict: Verdict) -> str:
    """pass, FAIL or inconclusive."""
    return _WORDS[verdict]


def metric_name(check: Check) -> str:
    """A budget's metric as people say it."""
    return figure_name(check.metric, check.label)


def figure_name(metric: str, label: str | None = None) -> str:
    """A metric as people say it, of the class `label` where it is of one."""
    return _NAMES.get(metric, metric) if label is None else f"recall of {label!r}"


def place(check: Check) -> str:
    """The runtime, the target for what was measured on one, and int8 or int4 for files that are."""
    runtime = check.runtime if check.variant == "f32" else f"{check.runtime} {check.variant}"
    label = "" if check.provenance == "measured" else f" ({check.provenance})"
    return f"{runtime} on {check.target}{label}" if check.target else runtime


def measured(check: Check) -> Value | None:
    """What was held against the budget; None where it could not be measured."""
    if check.value is None:
        return None
    return Value(check.value, dimension(check.metric), check.interval)


def measured_text(check: Check) -> str:
    """The same in words."""
    value = measured(check)
    return value.text if value else "not measured"


def gate_sentences(gate: GateReport) -> tuple[str, str]:
    """The verdict as a headline, and why."""
    count = len(gate.checks)
    if count == 0:
        return "No budgets", "No budgets are set, so there was nothing to hold the student against."
    broken = [check for check in gate.checks if check.verdict == "fail"]
    undecided = [check for check in gate.checks if check.verdict == "inconclusive"]
    if broken:
        return "Fail", f"{_of(len(broken), count)} broken: {_list(broken)}."
    if undecided:
        why = f"{_of(len(undecided), count)} undecided: {_list(undecided)}."
        if gate.exit_code == 0:
            why += " gate.on_inconclusive lets it pass."
        return "Inconclusive", why
    return "Pass", "The budget holds." if count == 1 else f"All {count} budgets hold."


def parity_sentence(report: VerifyReport) -> str:
    """How closely the deployed files follow the PyTorch models, in one line."""
    if not report.files:
        return "parity: no file was compared"
    worst = max(report.files, key=lambda p: p.max_error / p.tolerance)
    agreements = [p.agreement for p in report.files if p.agreement is not None]
    same = f", top-1 agreement at least {min(agreements) * 100:.4g} %" if agreements else ""
    failed = sum(not p.passed for p in report.files)
    verdict = f"{failed} of {len(report.files)} files FAIL" if failed else "pass"
    count = "1 file" if len(report.files) == 1 else f"{len(report.files)} files"
    return (
        f"parity: {verdict}; {count}, largest error {worst.max_error:.1e} of the largest output "
        f"(limit {worst.tolerance:.2g}){same}"
    )


def edge_text(edge: Edge) -> str:
    """One comparison of a file with what it was made from, in one line."""
    case = edge.worst
    error = case.note if case.max_error is None else f"largest error {case.max_error:.1e}"
    limit = "" if case.tolerance is None else f" (limit {case.tolerance:g})"
    judged = sum(c.tolerance is not None for c in edge.cases)
    return (
        f"{'pass' if edge.passed else 'FAIL'}  {edge.source} → {edge.path} in {edge.runtime}, "
        f"{edge.precision}: {error}{limit} at {case.inputs}; {judged} kinds of inputs"
    )


def agreement_text(case: InputCase | Parity) -> str:
    """Share of equal top-1 answers with its interval, in percent."""
    if case.agreement is None:
        return "–"
    text = f"{100 * case.agreement:.4g} %"
    if case.agreement_interval is None:
        return text
    low, high = case.agreement_interval
    return f"{text} [{100 * low:.4g}, {100 * high:.4g}]"


def _of(some: int, count: int) -> str:
    if count == 1:
        return "The budget is"
    return f"{some} of {count} budgets {'is' if some == 1 else 'are'}"


def _list(checks: list[Check]) -> str:
    return "; ".join(
        f"{metric_name(c)} with {place(c)} is {measured_text(c)}, the budget {c.limit}"
        for c in checks
    )
