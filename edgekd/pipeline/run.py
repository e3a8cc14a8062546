"""A run is a folder: `run.json` says which stages are done, with which key, and what they wrote."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import field_validator

from edgekd.artifacts import disk_errors, sha256_file
from edgekd.errors import UsageError
from edgekd.results import (
    DeviceFile,
    ExportedFile,
    ExportReport,
    GateReport,
    History,
    ModelCard,
    OperatorsReport,
    ProfileReport,
    QuantizeReport,
    Record,
    Role,
    SchemeReport,
    TrainingReport,
    VerifyReport,
)


class Artifact(Record):
    """A file of a stage. Size and time of change spare reading it again when they still match."""

    sha256: str
    size: int
    mtime_ns: int


class StageRecord(Record):
    """A finished stage. `key` hashes its configuration part, its inputs and its version.

    `inputs` are the SHA-256 of the earlier artifacts it was made from, by path.
    """

    key: str
    started: str
    seconds: float
    artifacts: dict[str, Artifact]
    reused_from: str | None = None
    inputs: dict[str, str] | None = None

    @field_validator("artifacts")
    @classmethod
    def _inside(cls, value: dict[str, Artifact]) -> dict[str, Artifact]:
        for name in value:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"artifact {name!r} is outside the run folder")
        return value


class Manifest(Record):
    """`run.json`. `config` is the resolved configuration; `base` the folder its paths start at."""

    edgekd: str
    command: str
    base: str
    config: dict[str, Any]
    environment: dict[str, Any]
    stages: dict[str, StageRecord] = {}


class Run:
    """A run folder and typed access to what its stages wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """An existing run. Raises UsageError when `path` is not one."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise UsageError("not a run folder: it has no run.json", where=str(path))
        return cls(path)

    @property
    def manifest(self) -> Manifest:
        """`run.json` as it is on disk now."""
        return Manifest.read(self.path / "run.json")

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace `run.json`."""
        manifest.write(self.path / "run.json")

    def card(self, role: Role) -> ModelCard:
        """How to rebuild the teacher or the student."""
        return ModelCard.read(self.path / role / "model.json")

    def training(self, role: Role) -> TrainingReport:
        """PyTorch accuracy of the teacher or the student."""
        return TrainingReport.read(self.path / role / "metrics.json")

    def history(self, role: Role) -> History | None:
        """Loss curves, or None when the weights were given."""
        path = self.path / role / "history.json"
        return History.read(path) if path.exists() else None

    @property
    def scheme(self) -> SchemeReport | None:
        """What was trained on the way to the student; None in a run of an earlier edgekd."""
        path = self.path / "student/scheme.json"
        return SchemeReport.read(path) if path.exists() else None

    @property
    def export(self) -> ExportReport:
        """The deployable files."""
        path = self.path / "export/export.json"
        report = ExportReport.read(path)
        self._check_inside((*report.files, *report.device), path)
        return report

    @property
    def quantize(self) -> QuantizeReport:
        """The INT8 files, if any, and what they were calibrated with."""
        path = self.path / "quantized/quantize.json"
        report = QuantizeReport.read(path)
        self._check_inside((*report.files, *report.device), path)
        return report

    def _check_inside(self, files: Iterable[ExportedFile], report: Path) -> None:
        """A run folder from elsewhere must not make us open, pack up or send a file of ours."""
        root = self.path.resolve()
        for part in (part for file in files for part in (file.path, *file.files)):
            # No system has a path with a null character, and resolve() fails on it.
            if "\0" in part or not (root / part).resolve().is_relative_to(root):
                raise UsageError(
                    f"{part!r} is outside the run folder",
                    where=str(report),
                    fix="this file is not what edgekd wrote; delete it and run again",
                )

    @property
    def files(self) -> tuple[ExportedFile, ...]:
        """Everything that can be deployed: exported and quantized files."""
        return (*self.export.files, *self.quantize.files)

    @property
    def device_files(self) -> tuple[DeviceFile, ...]:
        """The same as devices want them, where that was asked for."""
        return (*self.export.device, *self.quantize.device)

    @property
    def verify(self) -> VerifyReport:
        """Parity and accuracy of the deployable files."""
        return VerifyReport.read(self.path / "verify/parity.json")

    @property
    def profile(self) -> ProfileReport:
        """Latency, throughput and memory."""
        return ProfileReport.read(self.path / "profile/profile.json")

    @property
    def operators(self) -> OperatorsReport | None:
        """Where the time goes, or None when the profile did not look."""
        path = self.path / "profile/operators.json"
        return OperatorsReport.read(path) if path.exists() else None

    @property
    def gate(self) -> GateReport:
        """Verdict on every budget."""
        return GateReport.read(self.path / "gate/gate.json")

    @property
    def exit_code(self) -> int:
        """0 pass, 1 a budget is broken, 4 inconclusive."""
        return self.gate.exit_code

    def imported(self, targets: Iterable[str]) -> dict[str, str]:
        """SHA-256 of the results that `edgekd import` brought for these targets, by path in the run."""
        paths = [f"bundles/{target}.result.json" for target in targets]
        return {
            path: sha256_file(self.path / path) for path in paths if (self.path / path).is_file()
        }

    def intact(self, record: StageRecord) -> bool:
        """Whether every artifact of a finished stage is still what it was."""
        return not self.spoilt(record)

    def spoilt(self, record: StageRecord) -> list[str]:
        """The artifacts of a finished stage that are missing or were changed since, by name."""
        return [
            name
            for name, artifact in record.artifacts.items()
            if not self._unchanged(self.path / name, artifact)
        ]

    @staticmethod
    def _unchanged(path: Path, artifact: Artifact) -> bool:
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size != artifact.size:
            return False
        return stat.st_mtime_ns == artifact.mtime_ns or sha256_file(path) == artifact.sha256

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for this process, so that two commands never write it at once.

        A run that this process may not write can still be read: it is held if somebody made its lock.
        """
        with disk_errors(self.path):
            lock = self._open_lock()
        if lock is None:
            yield
            return
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    "another edgekd is working in this run folder",
                    where=str(self.path),
                    fix="wait for it, or give this run another folder with --out",
                ) from None
            yield
        finally:
            # A thread's child between fork and exec would hold what is only closed here.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _open_lock(self) -> int | None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # As below /proc, where nothing can be made.
            raise UsageError(f"cannot be made: {error.strerror}", where=str(self.path)) from None
        lock = self.path / ".lock"
        try:
            return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            readable = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            if not (readable and (self.path / "run.json").is_file()):
                raise
            return os.open(lock, os.O_RDONLY) if os.access(lock, os.R_OK) else None

    def partial(self, stage: str, key: str) -> Path:
        """Where a stage with this key works until it is done; a killed stage resumes from here."""
        return self.path / ".partial" / f"{stage}-{key[:16]}"

    def failed(self, stage: str) -> Path:
        """Where a stage that failed leaves what it has found, to be looked at: never its result."""
        return self.path / f"{stage}-failed.json"

    def succeeded(self, stage: str) -> None:
        """What an earlier attempt left for having failed is gone."""
        if self.failed(stage).exists():  # a folder that may only be read has nothing to take away
            with disk_errors(self.path):
                self.failed(stage).unlink(missing_ok=True)

    def adopt(self, partial: Path, folder: Path) -> dict[str, Artifact]:
        """Move the finished files of `partial` to `folder`, and say what they are."""
        names = sorted(p.relative_to(partial) for p in partial.rglob("*") if p.is_file())
        with disk_errors(folder):
            if folder == self.path:
                for name in names:
                    (partial / name).replace(folder / name)
            else:
                _replace_folder(partial, folder)
            shutil.rmtree(partial, ignore_errors=True)
            # Other keys' half-done work stays: the user may come back to that configuration.
            with contextlib.suppress(OSError):
                partial.parent.rmdir()
        return {
            str((folder / name).relative_to(self.path)): _describe(folder / name) for name in names
        }

    def borrow(self, stage: str, key: str, partial: Path) -> Path | None:
        """Link a finished stage with the same key from a neighbouring run into `partial`.

        Returns the run it came from. Artifacts are only ever replaced by rename, so that a
        hard link stays what it is. What a neighbour has is believed by its content alone.
        """
        for manifest_path in sorted(self.path.parent.glob("*/run.json")):
            other = Run(manifest_path.parent)
            if other.path == self.path or other.path.stat().st_uid != os.geteuid():
                continue
            with contextlib.suppress(UsageError, OSError):
                record = other.manifest.stages.get(stage)
                if record is None or record.key != key:
                    continue
                if any(
                    sha256_file(other.path / name) != artifact.sha256
                    for name, artifact in record.artifacts.items()
                ):
                    continue
                for name in record.artifacts:
                    link = partial / Path(name).relative_to(Path(name).parts[0])
                    link.parent.mkdir(parents=True, exist_ok=True)
                    _link(other.path / name, link)
                return other.path
        return None


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there goes only once the new one is in its place."""
    old = new.with_name(f"{new.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _describe(path: Path) -> Artifact:
    stat = path.stat()
    return Artifact(sha256=sha256_file(path), size=stat.st_size, mtime_ns=stat.st_mtime_ns)
