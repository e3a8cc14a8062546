"""Stage `report`: a page and a model card for people, two documents for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.artifacts import write_json, write_text
from edgekd.report import model_card, sbom
from edgekd.report.contents import read
from edgekd.report.data import document
from edgekd.report.html import render

if TYPE_CHECKING:
    from edgekd.pipeline.stages import Context


def run(context: Context) -> None:
    """Write `report.html`, `report.json`, `MODEL_CARD.md`, and `sbom.json` with the hash of all files."""
    contents = read(context.run)
    write_text(context.folder / "report.html", render(context.run))
    write_json(context.folder / "report.json", document(context.run))
    write_text(context.folder / "MODEL_CARD.md", model_card.render(contents))
    written = {
        name: context.folder / name for name in ("report.html", "report.json", "MODEL_CARD.md")
    }
    bill = sbom.document(contents, written, context.config.license)
    write_json(context.folder / "sbom.json", bill)
