"""What a finished gate adds to the history: every figure of the student, with its provenance."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import edgekd
from edgekd.artifacts import sha256_json
from edgekd.gate.figures import Figure
from edgekd.history import store
from edgekd.history.entry import Entry, printable
from edgekd.pipeline.environment import git_state
from edgekd.results import Check, GateReport, Measurement, Parity, Verdict

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.pipeline.stages import Context

# What tells one device from another, of what it says of itself. Its kernel may be upgraded.
_IDENTITY = ("board", "cpu_model", "architecture")
_WORST: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")


def record(context: Context, figures: Iterable[Figure], report: GateReport) -> None:
    """Append to the history that the configuration names, or say in one line why that failed.

    A history that cannot be written never fails a gate.
    """
    if context.config.history is None:
        return
    # A run that was copied from another machine may name a folder that is not here.
    base = context.base if context.base.is_dir() else Path.cwd()
    try:
        path = base / Path(context.config.history).expanduser()
        store.append(path, list(entries(context, figures, report)))
    except Exception as error:
        text = " ".join(str(error).split())
        context.progress.warn(f"the history was not written: {text}")


def entries(context: Context, figures: Iterable[Figure], report: GateReport) -> Iterator[Entry]:
    """An Entry per figure of the gate that just ended."""
    run, manifest = context.run, context.run.manifest
    git = git_state(context.base)
    profile = run.profile
    measured = {
        (m.target, m.runtime, m.variant): m for m in profile.measurements if m.role == "student"
    }
    verified = {(p.runtime, p.variant): p for p in run.verify.files if p.role == "student"}
    devices = {target: _device(said) for target, said in profile.environment.items()}
    files = {file.path: file.files for file in run.files}
    digests = {
        path: artifact.sha256
        for stage in manifest.stages.values()
        for path, artifact in stage.artifacts.items()
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for figure in figures:
        if figure.value is None:
            continue
        source: Measurement | Parity
        if figure.target is None:
            stage, source = "verify", verified[figure.runtime, figure.variant]
            placed: dict[str, object] = {}
        else:
            stage = "profile"
            source = measured[figure.target, figure.runtime, figure.variant]
            placed = _placed(figure, source)
        of_gate = figure.again or figure.metric.endswith("_vs_baseline")
        yield Entry.model_validate(
            {
                "time": now if of_gate else manifest.stages[stage].started,
                "run": context.config.name,
                "commit": git.commit,
                "dirty": git.dirty,
                "branch": git.branch and printable(git.branch),
                "config": _configuration(context.config),
                "artifact": _digest(files[source.path], digests),
                "target": figure.target,
                "device": devices.get(figure.target or ""),
                "runtime": figure.runtime,
                "runtime_version": None,
                "precision": printable(source.precision),
                "threads": None,
                "batch_size": None,
                "variant": figure.variant,
                "metric": printable(figure.metric),
                "label": figure.label if figure.label is None else printable(figure.label) or "?",
                "value": figure.value,
                "interval": figure.interval,
                "provenance": figure.provenance,
                "noisy": figure.noisy,
                **_budgeted(figure, report.checks),
                "edgekd": edgekd.__version__,
                **placed,
            }
        )


def _placed(figure: Figure, measurement: Measurement) -> dict[str, object]:
    """How it was measured on its target."""
    throughput = figure.metric == "throughput"
    latency = measurement.throughput_latency if throughput else measurement.latency
    return {
        "runtime_version": printable(measurement.runtime_version),
        "threads": measurement.threads,
        "batch_size": latency.batch_size,
    }


def _budgeted(figure: Figure, checks: Iterable[Check]) -> dict[str, object]:
    """The limits that were on this figure, and the worst verdict."""
    place = (figure.metric, figure.label, figure.target, figure.runtime, figure.variant)
    found = [c for c in checks if (c.metric, c.label, c.target, c.runtime, c.variant) == place]
    if not found:
        return {"limit": None, "verdict": None}
    verdict = min((check.verdict for check in found), key=_WORST.index)
    return {"limit": printable("; ".join(check.limit for check in found)), "verdict": verdict}


def _device(said: dict[str, object]) -> str | None:
    """Names the device, with the limits that it was held to (of `emulated` ones)."""
    parts = [said[name] for name in _IDENTITY if said.get(name) is not None]
    if said.get("cores") is not None:
        parts.append(f"{said['cores']} cores")
    if said.get("emulated"):
        parts.append(said["emulated"])
    return printable(", ".join(map(str, parts)))


def _configuration(config: Config) -> str:
    """The hash of all that makes the model and the way it is measured."""
    return sha256_json(config.model_dump(mode="json", exclude={"name", "gate", "history"}))


def _digest(parts: Iterable[str], digests: dict[str, str]) -> str:
    """The file's SHA-256; of a model in several files, that of their paths and hashes."""
    found = {part: digests[part] for part in parts}
    return next(iter(found.values())) if len(found) == 1 else sha256_json(found)
