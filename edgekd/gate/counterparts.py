"""What the student is compared with: the files of another run, or a model file from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekd.artifacts import sha256_file
from edgekd.errors import UsageError
from edgekd.export.parts import FORMATS, model_parts
from edgekd.gate.figures import logits_name
from edgekd.pipeline.run import Manifest, Run, StageRecord
from edgekd.pipeline.standing import standing
from edgekd.results import Measurement, Parity
from edgekd.tasks.task import of as of_task

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset


@dataclass(frozen=True)
class Counterpart:
    """The baseline's file beside one measured file of the student.

    `parts` are the file to open and what belongs to it, or empty when they are gone; `record` is
    what was measured then, and `environment` where; None and empty for a bare model file.
    """

    parts: list[Path]
    size: int
    record: Measurement | None
    environment: dict[str, object]


class Baseline(Protocol):
    """Something to compare with. `where` names it in errors."""

    where: str

    def counterpart(self, m: Measurement) -> Counterpart | None:
        """The file beside the measured one; None when the baseline has none of that kind."""

    def logits(self, file: Parity, indices: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Its logits on the test samples `indices`; None when it has no such file.

        Raises UsageError when it was not tested on these samples, or cannot be.
        """


class RunBaseline:
    """The student of an earlier run."""

    def __init__(self, run: Run) -> None:
        self.run, self.where = run, f"gate.baseline {run.path}"

    def counterpart(self, m: Measurement) -> Counterpart | None:
        """By target, runtime, format and variant.

        Raises UsageError for a file that is not what the run made, or was not measured since.
        """
        self._check_standing("profile")
        kind = (m.target, m.runtime, m.format, m.variant)
        for record in self.run.profile.measurements:
            of = (record.target, record.runtime, record.format, record.variant)
            if record.role == "student" and of == kind:
                file = next(file for file in self.run.files if file.path == record.path)
                names = [file.path, *(name for name in file.files if name != file.path)]
                parts = [self.run.path / name for name in names]
                there = all(part.is_file() for part in parts)
                if there:
                    self._check_unchanged(names)
                environment = self.run.profile.environment[record.target]
                return Counterpart(parts if there else [], record.size, record, environment)
        return None

    def _check_standing(self, stage: str) -> None:
        if stage not in self._standing:
            raise UsageError(
                f"has no {stage} of the files that are there now",
                where=self.where,
                fix=f"run `edgekd {stage} {self.run.path}` first",
            )

    def _check_unchanged(self, names: list[str]) -> None:
        made = {
            name: artifact.sha256
            for stage in self._manifest.stages.values()
            for name, artifact in stage.artifacts.items()
        }
        for name in names:
            if sha256_file(self.run.path / name) != made.get(name):
                raise UsageError(
                    "is not the file that the run made: its SHA-256 is another than in run.json",
                    where=str(self.run.path / name),
                    fix="make the baseline again, or name the file itself as the baseline",
                )

    @cached_property
    def _standing(self) -> dict[str, StageRecord]:
        return standing(self.run)

    @cached_property
    def _manifest(self) -> Manifest:
        return self.run.manifest

    def logits(self, file: Parity, indices: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Those that its verify stage kept."""
        self._check_standing("verify")
        kind = (file.runtime, file.format, file.variant)
        known = {
            (p.runtime, p.format, p.variant) for p in self.run.verify.files if p.role == "student"
        }
        if kind not in known:
            return None
        then_indices, then_labels, answers = self._archive(f"{file.runtime}/{logits_name(file)}")
        if not np.array_equal(then_indices, indices) or not np.array_equal(then_labels, labels):
            raise UsageError(
                "was tested on other samples than this run",
                where=self.where,
                fix="use the same data, data.seed, data.test and data.limit in both",
            )
        if answers.ndim not in (2, 4) or len(answers) != len(labels):
            raise UsageError(
                f"has logits of shape {answers.shape} for {len(labels)} samples", where=self._logits
            )
        return answers

    @property
    def _logits(self) -> str:
        return str(self.run.path / "verify/logits.npz")

    def _archive(self, name: str) -> list[np.ndarray]:
        """Indices, labels, and the array `name`, of a file that may be from anywhere."""
        try:
            with np.load(self._logits, allow_pickle=False) as then:
                return [then[key] for key in ("indices", "labels", name)]
        except FileNotFoundError:
            raise UsageError("no such file", where=self._logits) from None
        except Exception as error:
            # Of the zip file, of zlib, of numpy's header, or a plain array: too many kinds to name.
            raise UsageError(
                f"cannot be read ({type(error).__name__}): it is damaged, or not what edgekd wrote",
                where=self._logits,
                fix="make the baseline again",
            ) from None


class FileBaseline:
    """A model file, say the one in production: measured and tested here, in its runtime."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.parts = model_parts(path)
        self.format = FORMATS[path.suffix]
        self.where = f"gate.baseline {path}"
        self._dataset = dataset
        self._answers = cache(self._infer)

    def counterpart(self, m: Measurement) -> Counterpart | None:
        """The file itself, for every student file of its format."""
        size = sum(part.stat().st_size for part in self.parts)
        return Counterpart(self.parts, size, None, {}) if m.format == self.format else None

    def logits(self, file: Parity, indices: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """What it answers, in batches."""
        if file.format != self.format:
            return None
        answers = self._answers(file.runtime)
        dataset = self._dataset
        shape = of_task(dataset.task).shape(len(dataset.classes), dataset.input.shape)
        if answers.shape != (len(indices), *shape):
            raise UsageError(
                f"gives outputs of shape {answers.shape}; should give logits of shape "
                f"{(len(indices), *shape)} for the test split",
                where=self.where,
            )
        return answers

    def _infer(self, runtime: str) -> np.ndarray:
        from edgekd.profile.device.runtimes import load

        try:
            session = load(runtime, self.parts[0], threads=1, precision="f32")
            chunks = [
                session.run(self._dataset.tensor(self._dataset.test[i : i + 256]).numpy())[0]
                for i in range(0, len(self._dataset.test), 256)
            ]
        except Exception as error:
            raise UsageError(
                f"{runtime} cannot run it on the test samples: {str(error).splitlines()[0][:300]}",
                where=self.where,
                fix="it should take this run's inputs, with any batch size",
            ) from None
        return np.concatenate(chunks)
