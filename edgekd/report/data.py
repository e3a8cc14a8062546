"""The report as one JSON document: every figure with the artifact it was read from."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgekd.report.classes import answers, changes
from edgekd.report.comparison import groups
from edgekd.report.contents import Contents, read
from edgekd.results import Record

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run

SCHEMA = 1


def document(run: Run) -> dict[str, Any]:
    """Everything of the report, ready for JSON; base units (seconds, bytes, shares) throughout.

    Every section below `results` says in `source` which artifact it is, with its SHA-256, and is
    null when its stage is not done. Raises UsageError when an artifact is missing or was edited.
    """
    contents = read(run)
    manifest = contents.manifest
    return {
        "schema": SCHEMA,
        "edgekd": manifest.edgekd,
        "name": manifest.config.get("name"),
        "command": manifest.command,
        "base": manifest.base,
        "config": manifest.config,
        "environment": manifest.environment,
        "missing": list(contents.missing),
        "comparison": [asdict(group) for group in groups(contents)],
        "classes": [
            asdict(changes(given, contents.models["student"].card.classes))
            for given in answers(contents, run)
        ],
        "results": {
            "teacher": _model(contents, "teacher"),
            "student": _model(contents, "student"),
            "scheme": _sourced(contents, "student/scheme.json", contents.scheme),
            "export": _sourced(contents, "export/export.json", contents.export),
            "quantize": _sourced(contents, "quantized/quantize.json", contents.quantize),
            "verify": _sourced(contents, "verify/parity.json", contents.verify),
            "profile": _sourced(contents, "profile/profile.json", contents.profile),
            "operators": _sourced(contents, "profile/operators.json", contents.operators),
            "gate": _sourced(contents, "gate/gate.json", contents.gate),
        },
        "stages": {
            # When a file was last touched says nothing about the results.
            name: record.model_dump(mode="json", exclude={"artifacts": {"__all__": {"mtime_ns"}}})
            for name, record in contents.stages.items()
        },
    }


def _model(contents: Contents, role: str) -> dict[str, Any] | None:
    trained = next((m for m in contents.models.values() if m.card.role == role), None)
    if trained is None:
        return None
    return {
        "card": _sourced(contents, f"{role}/model.json", trained.card),
        "metrics": _sourced(contents, f"{role}/metrics.json", trained.training),
        "history": _sourced(contents, f"{role}/history.json", trained.history),
    }


def _sourced(contents: Contents, path: str, record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    source = {"path": path, "sha256": contents.digest(path)}
    return {"source": source, **record.model_dump(mode="json")}
