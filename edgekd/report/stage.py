"""Stage `report`: one page for people, one document for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.artifacts import write_json, write_text
from edgekd.report.data import document
from edgekd.report.html import render

if TYPE_CHECKING:
    from edgekd.pipeline.stages import Context


def run(context: Context) -> None:
    """Write `report.html` and `report.json`."""
    write_text(context.folder / "report.html", render(context.run))
    write_json(context.folder / "report.json", document(context.run))
