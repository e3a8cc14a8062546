"""From votes to labels worth learning from; what is left out is written down with the reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgekd.artifacts import write_json
from edgekd.errors import StageError, UsageError
from edgekd.imitation.settings import Imitate
from edgekd.teachers.tables import read_table, write_parquet


def clean(settings: Imitate, folder: Path) -> dict[str, Any]:
    """`clean.parquet`: id, text, label, probabilities, agreement, rationale; `rejected.parquet`; counts.

    A text's label is that of most of its votes; `agreement` their share of all votes, those that
    could not be read included. `probabilities` are (votes + ½) / (n + ½ · classes), Jeffreys' prior:
    a few equal votes are no certainty.
    """
    answers = _answers(folder)
    kept, rejected = [], []
    for rows in answers.values():
        row = _settled(rows, settings)
        reason = _reason(row, settings)
        if reason is None:
            kept.append(row)
        else:
            rejected.append({"id": row["id"], "text": row["text"], "reason": reason})
    if not kept:
        raise StageError(
            f"none of {len(answers)} texts is left", where=str(folder),
            fix="look at answers.parquet; lower clean.min_agreement or ask otherwise",
        )  # fmt: skip
    classes = tuple(settings.classes)
    write_parquet(folder / "clean.parquet", kept, classes)
    rejected_path = folder / "rejected.parquet"
    if rejected:
        write_parquet(rejected_path, rejected, classes)
    else:
        rejected_path.unlink(missing_ok=True)
    known = [row for row in kept if row["known_label"] is not None]
    summary = {
        "kept": len(kept),
        "rejected": dict(Counter(row["reason"] for row in rejected)),
        "labels": {name: sum(row["label"] == name for row in kept) for name in classes},
        "right": sum(row["label"] == row["known_label"] for row in known) if known else None,
        "known": len(known),
    }
    write_json(folder / "clean.json", summary)
    return summary


def _answers(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of `answers.parquet` by id."""
    path = folder / "answers.parquet"
    if not path.is_file():
        raise UsageError(
            "no answers are collected yet", where=str(path), fix="edgekd imitate collect"
        )
    table = read_table(path)
    found: dict[str, list[dict[str, Any]]] = {}
    for values in zip(*table.columns.values(), strict=True):
        row = dict(zip(table.columns, values, strict=True))
        found.setdefault(row["id"], []).append(row)
    return found


def _settled(rows: list[dict[str, Any]], settings: Imitate) -> dict[str, Any]:
    votes = Counter(row["label"] for row in rows if row["label"] is not None)
    # Of equal counts the class that comes first in the configuration.
    label = max(settings.classes, key=lambda name: votes[name]) if votes else None
    count, classes = votes.total(), settings.classes
    reasons = [row["rationale"] for row in rows if row["label"] == label and row["rationale"]]
    return {
        "id": rows[0]["id"],
        "text": rows[0]["text"],
        "label": label,
        "probabilities": [(votes[c] + 0.5) / (count + 0.5 * len(classes)) for c in classes],
        "agreement": votes[label] / len(rows) if label else 0.0,
        "votes": len(rows),
        "rationale": reasons[0] if reasons else None,
        "known_label": rows[0]["known_label"],
    }


def _reason(row: dict[str, Any], settings: Imitate) -> str | None:
    """Why it is not learned from."""
    limits, length = settings.clean, len(row["text"].strip())
    if row["label"] is None:
        return "no usable answer"
    if row["agreement"] < limits.min_agreement:
        return "votes disagree"
    if not limits.min_characters <= length <= limits.max_characters:
        return "too short" if length < limits.min_characters else "too long"
    return None
