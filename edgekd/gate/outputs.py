"""The verdict for other programs: JUnit XML, Markdown, a badge, GitHub's annotations and summary."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from edgekd.artifacts import disk_errors, is_special, write_text
from edgekd.errors import EdgekdError, UsageError
from edgekd.results import Check, GateReport

_COLOR = {"pass": "brightgreen", "fail": "red", "inconclusive": "yellow"}
_MARK = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}


def write(report: GateReport, name: str, files: Mapping[str, Path | None]) -> list[UsageError]:
    """Write the wanted files ("junit", "markdown", "badge" → path); tell GitHub where it listens.

    Returns an error for each that could not be written: the others are.
    """
    makers = {"junit": junit, "markdown": markdown, "badge": badge}
    jobs: list[tuple[str, Path, Callable[[], None]]] = [
        (f"--{kind} {path}", path, partial(write_text, path, makers[kind](report, name)))
        for kind, path in files.items()
        if path is not None
    ]
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations(report):
            print(line, file=sys.stderr)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            append = partial(_append, Path(summary), markdown(report, name))
            jobs.append((f"GITHUB_STEP_SUMMARY {summary}", Path(summary), append))
    return [error for job in jobs if (error := _attempt(*job)) is not None]


def _attempt(what: str, path: Path, job: Callable[[], None]) -> UsageError | None:
    try:
        with disk_errors(path):
            job()
    except EdgekdError as error:
        return UsageError(error.what, where=what)
    except OSError as error:
        return UsageError(f"cannot be written: {error.strerror}", where=what)
    return None


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def forget(files: Mapping[str, Path | None]) -> None:
    """Remove what an earlier gate wrote, before this one: should it fail, no old verdict is left."""
    for path in files.values():
        if path is not None:
            # A place that cannot be written is reported with the verdict.
            with contextlib.suppress(OSError):
                if path.is_file() and not is_special(path):
                    path.resolve().unlink()


def junit(report: GateReport, name: str) -> str:
    """JUnit XML: a test case per check; undecided ones fail when the gate does, else are skipped."""
    undecided = "failure" if report.exit_code == 4 else "skipped"
    kinds = {"fail": "failure", "inconclusive": undecided}
    found = [kinds.get(check.verdict, "") for check in report.checks]
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(f"edgekd gate {name}"),
        tests=str(len(found)),
        failures=str(found.count("failure")),
        skipped=str(found.count("skipped")),
        errors="0",
    )
    for check, kind in zip(report.checks, found, strict=True):
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_xml(".".join(_place(check))),
            name=_xml(_budget(check)),
        )
        if kind:
            ElementTree.SubElement(case, kind, message=_xml(check.text), type=check.verdict)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: GateReport, name: str) -> str:
    """A heading with the verdict and a table of the checks, for a merge request."""
    lines = [
        f"### edgekd gate {_cell(name)}: {_MARK[report.verdict]}",
        "",
        "| | budget | place | measured |",
        "|---|---|---|---|",
    ]
    for check in report.checks:
        lines.append(
            f"| {_MARK[check.verdict]} | {_cell(_budget(check))} | "
            f"{_cell(' / '.join(_place(check)))} | {_cell(check.shown)} |"
        )
    return "\n".join(lines) + "\n"


def badge(report: GateReport, name: str) -> str:
    """The JSON of a shields.io endpoint badge."""
    return json.dumps(
        {
            "schemaVersion": 1,
            "label": f"edgekd {name}",
            "message": report.verdict,
            "color": _COLOR[report.verdict],
        }
    )


def github_annotations(report: GateReport) -> list[str]:
    """GitHub workflow commands: an error per broken budget, a warning per undecided one."""
    level = {"fail": "error", "inconclusive": "warning"}
    return [
        f"::{level[check.verdict]} title=edgekd gate::{_command(check.text)}"
        for check in report.checks
        if check.verdict in level
    ]


def _budget(check: Check) -> str:
    of = f" of {check.label!r}" if check.label is not None else ""
    return f"{check.metric}{of} {check.limit}"


def _place(check: Check) -> list[str]:
    label = None if check.provenance == "measured" else check.provenance
    return [part for part in (check.target, label, check.runtime, check.variant) if part]


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold at all."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)


def _cell(text: str) -> str:
    """Nothing that Markdown or HTML would take for more than text."""
    text = re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", text)
    # A backslash keeps nobody from being notified: a space of no width does.
    return " ".join(text.replace("@", "@\u200b").split())


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
