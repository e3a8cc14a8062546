"""The Python API: each function brings a run folder up to date up to one stage, and returns it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.load import apply_overrides, load_config, of_gate, validate
from edgekd.config.schema import Config
from edgekd.errors import UsageError
from edgekd.pipeline.line import config_of, resolve_folder, run_line
from edgekd.pipeline.run import Run
from edgekd.progress import Progress, Silent

if TYPE_CHECKING:
    from edgekd.search.records import SearchReport

ConfigLike = Config | Mapping[str, Any] | str | os.PathLike[str]


def _until(stage: str, name: str, doc: str) -> Callable[..., Run]:
    def function(
        config: ConfigLike,
        *,
        out: str | os.PathLike[str] | None = None,
        overrides: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> Run:
        overrides = [overrides] if isinstance(overrides, str) else list(overrides)
        resolved, base = resolve(config, overrides)
        kept = resolved
        if stage == "gate":
            kept, _ = resolve(config, [text for text in overrides if not of_gate(text)])
        if out is None and isinstance(config, str | os.PathLike) and Path(config).is_dir():
            out = config
        run, _ = run_line(
            resolved,
            base=base,
            out=resolve_folder(resolved, Path(out) if out is not None else None),
            until=stage,
            progress=progress or Silent(),
            command=f"edgekd.{name}(...)",
            kept=kept,
        )
        return run

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""{doc}

    `config` is a Config, a mapping of its sections, an existing run folder, or the path of a YAML
    file; relative paths in it start at the file's folder (the current folder otherwise).
    `out` is the run folder (default runs/<name>, or the run folder given); `overrides` are strings
    such as "distill.epochs=3"; `progress` is silent unless given (see edgekd.progress).
    Stages that are already done are not done again.
    Raises edgekd.errors.UsageError, StageError or Interrupted.
    """
    return function


def resolve(config: ConfigLike, overrides: Iterable[str] = ()) -> tuple[Config, Path]:
    """A validated Config and the folder that its relative paths start at."""
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(config, str | os.PathLike):
        path = Path(config)
        if not path.is_dir():
            return load_config(path, overrides), path.absolute().parent
        recorded, base = config_of(Run.open(path))
        value = apply_overrides(recorded.model_dump(mode="json"), overrides)
        return validate(value, where=str(path), lines={}), base
    if not isinstance(config, Config | Mapping):
        raise UsageError(
            f"config is a {type(config).__name__}; should be a path, a mapping or a Config"
        )
    value = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    value = apply_overrides(value, overrides)
    return validate(value, where="config", lines={}), Path.cwd()


def search(
    config: ConfigLike,
    *,
    out: str | os.PathLike[str] | None = None,
    best: str | os.PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
) -> SearchReport:
    """The student that meets `gate.budgets` with the best validation accuracy, whatever `config` names.

    `out` is the search's folder (default runs/<name>-search); the winner is written to `best` as a
    configuration, if given, and its training goes on in runs/<name> beside it. `config`, `overrides` and
    `progress` are as for `compress`. Raises edgekd.errors.UsageError, StageError or Interrupted.
    """
    from edgekd.search.search import SUFFIX
    from edgekd.search.search import search as found

    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    resolved, base = resolve(config, ["student=auto", *overrides])
    folder = Path(out) if out is not None else Path("runs") / f"{resolved.name}{SUFFIX}"
    return found(
        resolved,
        base=base,
        out=resolve_folder(resolved, folder),
        progress=progress or Silent(),
        goes_on=[folder.parent / resolved.name],
        best=None if best is None else Path(best),
        command="edgekd.search(...)",
    )


compress = _until("report", "compress", "The whole line, from the teacher to the report.")
distill = _until("distill", "distill", "Up to the trained student.")
export = _until("export", "export", "Up to the exported files.")
quantize = _until("quantize", "quantize", "Up to the INT8 files, if any are configured.")
verify = _until("verify", "verify", "Up to the parity and accuracy of the exported files.")
profile = _until("profile", "profile", "Up to latency, throughput and memory.")
gate = _until(
    "gate",
    "gate",
    "Up to the verdict on the budgets. Overrides of gate.* are of this call alone: the run keeps its own.",
)
report = _until("report", "report", "Up to report.html and report.json.")
