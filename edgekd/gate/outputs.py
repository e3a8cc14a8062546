"""The verdict for other programs: JUnit XML, Markdown, a badge, GitHub's annotations and summary."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from edgekd.artifacts import disk_errors, write_text
from edgekd.results import Check, GateReport

_COLOR = {"pass": "brightgreen", "fail": "red", "inconclusive": "yellow"}
_MARK = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}


def write(report: GateReport, name: str, files: Mapping[str, Path | None]) -> None:
    """Write the wanted files ("junit", "markdown", "badge" → path); tell GitHub where it listens."""
    makers = {"junit": junit, "markdown": markdown, "badge": badge}
    for kind, path in files.items():
        if path is not None:
            write_text(path, makers[kind](report, name))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations(report):
            print(line, file=sys.stderr)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            with disk_errors(Path(summary)), open(summary, "a", encoding="utf-8") as file:
                file.write(markdown(report, name))


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
            name=_xml(f"{check.metric} {check.limit}"),
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
        measured = check.text.partition(": ")[2].rpartition(", budget ")[0]
        lines.append(
            f"| {_MARK[check.verdict]} | {_cell(check.metric)} {_cell(check.limit)} | "
            f"{_cell(' / '.join(_place(check)))} | {_cell(measured)} |"
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


def _place(check: Check) -> list[str]:
    label = None if check.provenance == "measured" else check.provenance
    return [part for part in (check.target, label, check.runtime, check.variant) if part]


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold at all."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)


def _cell(text: str) -> str:
    """Nothing that Markdown or HTML would take for more than text."""
    text = re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", text)
    return " ".join(text.split())


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
