"""Run the assembly line in a run folder, doing only what is not already done."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgekd
from edgekd.artifacts import disk_errors, sha256_json
from edgekd.config.schema import Config
from edgekd.errors import EdgekdError, Interrupted, StageError, UsageError, Waiting
from edgekd.gate.ahead import check_answerable
from edgekd.pipeline import together
from edgekd.pipeline.run import Manifest, Run, StageRecord
from edgekd.pipeline.stages import LINE, NAMES, Context, Stage
from edgekd.progress import Progress, Silent
from edgekd.signals import terminable


def run_line(
    config: Config,
    *,
    base: Path,
    out: Path,
    until: str = "report",
    force: str | None = None,
    progress: Progress,
    command: str | None = None,
    kept: Config | None = None,
) -> tuple[Run, list[str]]:
    """Bring the run folder `out` up to date with `config`, up to and including stage `until`.

    A stage whose key (configuration part, inputs, version) is in the manifest and whose
    artifacts are intact is skipped. `force` names a stage that is done again all the same.
    `kept` is what the run remembers as its configuration, where that is not `config`: a gate may be
    held to other budgets for once.
    Returns the run and the names of the stages that were done now.
    Raises UsageError, StageError, Interrupted; earlier artifacts are left as they were.
    Of several processes that torchrun started, the first one does this; the others help it train.
    """
    run = Run(out)
    kept = kept or config
    done: list[str] = []
    together.check(config)
    check_ahead(config, base, until)
    if together.follows():
        _follow(config, base, run)
        return run, done
    if config.student.auto and until != NAMES[0]:
        from edgekd.search.search import chosen

        config, kept = chosen(config, kept, base=base, out=out, progress=progress, command=command)
    # Whether what the student will learn has been tried out, where anything is to be trained.
    tried = NAMES.index(until) < NAMES.index("distill")
    with run.locked(), together.leading():
        stages = _recorded(run)
        finished: dict[str, StageRecord] = {}
        for stage in LINE[: NAMES.index(until) + 1]:
            made = {
                path: artifact.sha256
                for record in finished.values()
                for path, artifact in record.artifacts.items()
            }
            brought = run.imported(config.profile.targets)
            key = sha256_json(stage.inputs(config, base, brought | made))
            record = stages.get(stage.name)
            spoilt: list[str] = []
            if record and record.key == key and stage.name != force:
                spoilt = run.spoilt(record)
                if not spoilt:
                    finished[stage.name] = record
                    run.succeeded(stage.name)
                    continue
            progress.say(stage.name)
            if spoilt:
                progress.say(f"  {_spoilt(run, spoilt)}: {stage.name} is done again")
            if stage.name == "report" or not (run.path / "run.json").exists():
                # The report reads the manifest. Otherwise a configuration is written down only
                # with what it made, so that one that fails leaves the run as it was.
                _write_manifest(run, kept, base, stages, command)
            try:
                tries = not tried and stage.name in together.TRAINING
                record = _do(stage, key, config, base, run, progress, force, tries)
                tried = tried or (tries and record.reused_from is None)
            except Waiting:
                # Whoever brings what it waits for finds here what that must be made for.
                _write_manifest(run, kept, base, stages, command)
                raise
            except StageError:
                if stage.name == "verify":
                    _withdraw(run, stage.name)
                raise
            run.succeeded(stage.name)
            finished[stage.name] = record.model_copy(update={"inputs": stage.needed(made)})
            done.append(stage.name)
            stages = {**stages, stage.name: finished[stage.name]}
            _write_manifest(run, kept, base, stages, command)
    return run, done


def _follow(config: Config, base: Path, run: Run) -> None:
    """Train with the first process whatever it trains; what this one writes is thrown away."""
    work = {stage.name: stage.work for stage in LINE if stage.name in together.TRAINING}
    with together.following() as names:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                context = Context(config, base, run, Path(folder), Silent())
                with _user_errors(name, context.folder), terminable():
                    work[name](context)


def check_ahead(config: Config, base: Path, until: str) -> None:
    """Ask every stage for its part of the configuration, and hold the budgets against all of it.

    Raises UsageError for a file, recipe or target that is not there, and for a budget that nothing can
    answer: hours of training come before the stage that would find it.
    """
    for stage in LINE[: NAMES.index(until) + 1]:
        if not (stage.name == "distill" and config.student.auto):
            stage.part(config, base)
        if stage.name == "gate":
            check_answerable(config, base)


# An earlier one may have been done for another configuration, or in another run.
_OF_THE_TASK = (*together.TRAINING, "export")


def _do(
    stage: Stage,
    key: str,
    config: Config,
    base: Path,
    run: Run,
    progress: Progress,
    force: str | None,
    tries: bool,
) -> StageRecord:
    started = time.monotonic()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    folder = run.partial(stage.name, key)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
    source = None
    if stage.shareable and stage.name != force:
        source = run.borrow(stage.name, key, folder)
    if source is not None:
        progress.say(f"  the same {stage.name} was done in {source}; reused")
    else:
        with _removed_if_empty(folder), _user_errors(stage.name, folder), terminable():
            context = Context(config, base, run, folder, progress)
            if stage.name in _OF_THE_TASK:
                from edgekd.tasks.check import check_task

                check_task(config, context.dataset.task, context.dataset.classes)
            if tries:
                from edgekd.distill.ahead import rehearse

                rehearse(context)
            with together.helped(stage.name):
                stage.work(context)
    artifacts = run.adopt(folder, run.path / stage.folder)
    return StageRecord(
        key=key,
        started=now,
        seconds=round(time.monotonic() - started, 3),
        artifacts=artifacts,
        reused_from=str(source) if source else None,
    )


def _tidy(folder: Path) -> None:
    """Without the temporary files, which all begin with a dot, of an attempt that was killed."""
    for left in list(folder.rglob(".*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """A stage that fails leaves its folder only where there is something in it to go on from."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        raise


@contextlib.contextmanager
def _user_errors(stage: str, folder: Path) -> Iterator[None]:
    """Whatever goes wrong in a stage becomes one error that names the stage."""
    try:
        with disk_errors(folder):
            yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped in stage {stage}", fix="run the same command again to go on from here"
        ) from None
    except EdgekdError:
        raise
    except SystemExit:
        # Of a model, a metric or a data source; it would otherwise be the exit code of edgekd.
        raise StageError(
            f"something that stage {stage} called ended the program (sys.exit)",
            fix="code that edgekd calls should raise an exception instead",
        ) from None
    except MemoryError:
        raise StageError(
            f"out of memory in stage {stage}", fix="use a smaller batch_size"
        ) from None


def _withdraw(run: Run, stage: str) -> None:
    """Files that have just failed have not passed, whatever was said of them before."""
    if (run.path / "run.json").exists():
        manifest = run.manifest
        stages = {name: record for name, record in manifest.stages.items() if name != stage}
        run.write_manifest(manifest.model_copy(update={"stages": stages}))


def _spoilt(run: Run, names: list[str]) -> str:
    missing = not (run.path / names[0]).exists()
    others = f" (and {len(names) - 1} more)" if names[1:] else ""
    return f"{names[0]} {'is missing' if missing else 'was changed since it was made'}{others}"


def _recorded(run: Run) -> dict[str, StageRecord]:
    if not (run.path / "run.json").exists():
        return {}
    return dict(run.manifest.stages)


def _write_manifest(
    run: Run, config: Config, base: Path, stages: dict[str, StageRecord], command: str | None
) -> None:
    from edgekd.pipeline.environment import environment

    resolved = config.model_dump(mode="json")
    run.write_manifest(
        Manifest(
            edgekd=edgekd.__version__,
            command=_whole_command(run, resolved)
            or command
            or shlex.join(["edgekd", *sys.argv[1:]]),
            base=str(base),
            config=resolved,
            environment=environment(),
            stages=stages,
        )
    )


def _whole_command(run: Run, config: dict[str, Any]) -> str | None:
    """The command of a finished run that only renews some of it: that reproduces all of it."""
    if not (run.path / "run.json").exists():
        return None
    manifest = run.manifest
    whole = manifest.config == config and "report" in manifest.stages
    return manifest.command if whole else None


def resolve_folder(config: Config, out: Path | None) -> Path:
    """The run folder: `--out`, or runs/<name> below the current folder."""
    folder = out or Path("runs") / config.name
    with disk_errors(folder):
        if not folder.exists():
            return folder
        if not folder.is_dir():
            raise UsageError(
                "is a file, not a folder", where=str(folder), fix="choose another --out"
            )
        foreign = {path.name for path in folder.iterdir()} - {".lock", ".partial"}
        if foreign and not (folder / "run.json").exists():
            raise UsageError(
                f"is not a run folder: it has {sorted(foreign)[0]!r} in it but no run.json",
                where=str(folder),
                fix="choose another --out: an empty folder, or one that does not exist yet",
            )
    return folder


def config_of(run: Run) -> tuple[Config, Path]:
    """The configuration a run was made with, and the folder its paths start at."""
    manifest = run.manifest
    return parse_config(manifest.config), Path(manifest.base)


def parse_config(value: dict[str, Any]) -> Config:
    """A resolved configuration back from its manifest."""
    from edgekd.config.load import validate

    return validate(value, where="run.json", lines={})
