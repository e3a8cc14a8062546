"""The summary on the terminal: teacher, student, ratio; then the budgets and the parity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekd.report.checks import (
    gate_sentences,
    measured_text,
    metric_name,
    parity_sentence,
    place,
    verdict_word,
)
from edgekd.report.comparison import Group, Row, groups
from edgekd.report.contents import Contents, contents_of, read
from edgekd.results import GateReport, ProfileReport, Verdict

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run

_STYLE: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_HEADINGS = ("", "teacher", "student", "ratio")


def rows(run: Run) -> list[Row]:
    """Every figure of teacher and student that the run has so far, in the table's order.

    Raises UsageError when an artifact of a finished stage is missing or was edited.
    """
    return [row for group in groups(read(run)) for row in group.rows]


def table(run: Run) -> Table:
    """Teacher, student and ratio, the budgets with their verdicts, and the parity in one line.

    Names from models and devices are plain text, not markup. A stage whose files are missing or were
    edited counts as not done.
    """
    contents = read(run, intact=True)
    page = Table.grid()
    for part in (*_comparison(groups(contents)), *_closing(contents)):
        page.add_row(part)
    return page


def measured_table(profile: ProfileReport) -> Table:
    """What was measured, without a run around it."""
    page = Table.grid()
    for part in _comparison(groups(contents_of(profile))):
        page.add_row(part)
    return page


def _comparison(compared: list[Group]) -> Iterator[RenderableType]:
    """A table per group with the widths of all, so that they read as one with headings."""
    cells = [[_cells(row) for row in group.rows] for group in compared]
    every = [_HEADINGS, *(row for rows in cells for row in rows)]
    widths = [max(cell_len(row[column]) for row in every) for column in range(4)]
    for position, (group, rows) in enumerate(zip(compared, cells, strict=True)):
        if position:
            yield Text("")
        yield Text.assemble((group.title, "bold"), (f"  {group.detail}", "dim"))
        part = Table(box=None, padding=(0, 2), pad_edge=False, show_header=position == 0)
        for heading, width in zip(_HEADINGS, widths, strict=True):
            part.add_column(heading, min_width=width, justify="right" if heading else "left")
        for row in rows:
            part.add_row(*map(Text, row))
        yield part
        yield from (Text(note, style="yellow") for note in _notes(group))


def _cells(row: Row) -> tuple[str, str, str, str]:
    return (
        row.label,
        row.teacher.text if row.teacher else "–",
        row.student.text if row.student else "–",
        row.change.text if row.change else "–",
    )


def _notes(group: Group) -> list[str]:
    """Why the figures of a group are not to be relied on, each reason once."""
    return list(dict.fromkeys(f"latency: {row.note}" for row in group.rows if row.note))


def _closing(contents: Contents) -> Iterator[RenderableType]:
    if contents.gate is not None:
        if contents.gate.checks:
            yield Padding(_budgets(contents.gate), (1, 0, 0, 0))
        yield Padding(_verdict(contents.gate), (1, 0, 0, 0))
    if contents.verify is not None:
        yield Text(parity_sentence(contents.verify))
    if contents.missing:
        yield Text(f"not done yet: {', '.join(contents.missing)}", style="dim")


def _budgets(gate: GateReport) -> Table:
    budgets = Table(box=None, padding=(0, 2), pad_edge=False)
    budgets.add_column("budget on the student")
    budgets.add_column("limit", justify="right")
    budgets.add_column("measured", justify="right")
    budgets.add_column("verdict")
    for check in gate.checks:
        budgets.add_row(
            Text(f"{metric_name(check)}, {place(check)}"),
            Text(check.limit),
            Text(measured_text(check)),
            Text(verdict_word(check.verdict), style=_STYLE[check.verdict]),
        )
    return budgets


def _verdict(gate: GateReport) -> Text:
    headline, why = gate_sentences(gate)
    style = _STYLE[gate.verdict] if gate.checks else ""
    return Text.assemble((f"{headline}: ", f"bold {style}"), why)
