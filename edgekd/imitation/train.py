"""What was learned from the teacher as records, and a student distilled from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import UsageError
from edgekd.imitation.collect import read_texts
from edgekd.imitation.settings import Imitate, folded
from edgekd.progress import Progress
from edgekd.teachers.tables import read_table, write_parquet

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run


def train(
    settings: Imitate, base: Path, folder: Path, progress: Progress
) -> tuple[Path, Run | None]:
    """Write `records.parquet` for `teacher.model: records:…`; distil `settings.student` from it.

    Every text gets the answer to the text that it equals: labels of single answers, probabilities of
    votes. Training samples without a record are left out.
    """
    path = folder / "clean.parquet"
    if not path.is_file():
        raise UsageError("nothing is cleaned yet", where=str(path), fix="edgekd imitate clean")
    table = read_table(path)
    column = "label" if settings.votes == 1 else "probabilities"
    said = {folded(t): v for t, v in zip(table.columns["text"], table.columns[column], strict=True)}
    rows = [
        {"id": text.id, column: said[folded(text.text)]}
        for text in read_texts(settings, base)
        if folded(text.text) in said
    ]
    records = folder / "records.parquet"
    write_parquet(records, rows, tuple(settings.classes))
    if settings.student is None:
        return records, None
    from edgekd import api

    overrides = [
        f"teacher.model=records:{records.absolute()}",
        "teacher.args={missing: leave_out}",
        "teacher.weights=null",
    ]
    if column == "label":
        overrides.append("distill.methods=[hard]")
    student = base / Path(settings.student).expanduser()
    return records, api.distill(
        student, out=folder / "student", overrides=overrides, progress=progress
    )
