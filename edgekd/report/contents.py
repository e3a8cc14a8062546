"""Everything a run folder holds, read once; what is not done yet is None."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from zipfile import BadZipFile

from edgekd.errors import UsageError
from edgekd.results import (
    ExportedFile,
    ExportReport,
    GateReport,
    History,
    ModelCard,
    OperatorsReport,
    ProfileReport,
    QuantizeReport,
    Role,
    SchemeReport,
    TrainingReport,
    VerifyReport,
)

if TYPE_CHECKING:
    import numpy as np

    from edgekd.pipeline.run import Manifest, Run, StageRecord

T = TypeVar("T")

# The stages that a report is made of, in their order on the line.
STAGES = ("teacher", "distill", "export", "quantize", "verify", "profile", "gate")
ROLES: tuple[Role, Role] = ("teacher", "student")
_STAGE_OF: dict[Role, str] = {"teacher": "teacher", "student": "distill"}


@dataclass(frozen=True)
class Trained:
    """A network: its card, its accuracy before export, and its loss curves unless weights were given."""

    card: ModelCard
    training: TrainingReport
    history: History | None


@dataclass(frozen=True)
class Contents:
    """The typed artifacts of a run. `models` has the roles whose stage is done."""

    manifest: Manifest
    models: Mapping[Role, Trained]
    export: ExportReport | None
    quantize: QuantizeReport | None
    verify: VerifyReport | None
    profile: ProfileReport | None
    gate: GateReport | None
    operators: OperatorsReport | None = None
    scheme: SchemeReport | None = None

    @property
    def stages(self) -> dict[str, StageRecord]:
        """The finished stages in the order of the line, without the report itself."""
        done = self.manifest.stages
        return {name: done[name] for name in STAGES if name in done}

    @property
    def missing(self) -> tuple[str, ...]:
        """The stages that are not done."""
        return tuple(name for name in STAGES if name not in self.manifest.stages)

    @property
    def task(self) -> str:
        """What its models are for (`tasks/task.py`)."""
        return next((m.card.task for m in self.models.values()), "classification")

    @property
    def score(self) -> str:
        """What the task's score is called: accuracy, R², mean IoU."""
        tests = (m.training.test or m.training.validation for m in self.models.values())
        return next((test.name for test in tests if test), "accuracy")

    @property
    def files(self) -> tuple[ExportedFile, ...]:
        """Everything that can be deployed, exported and quantized."""
        return tuple(
            file for part in (self.export, self.quantize) if part is not None for file in part.files
        )

    def digest(self, path: str) -> str | None:
        """The SHA-256 that the manifest has for a run-relative path."""
        for record in self.manifest.stages.values():
            if path in record.artifacts:
                return record.artifacts[path].sha256
        return None


def read(run: Run, *, intact: bool = False) -> Contents:
    """Read what the manifest says is done; files without a manifest line are not trusted.

    What was made from files that are others now counts as not done. Raises UsageError when an
    artifact of a finished stage is missing or was edited; with `intact`, that is not done either.
    """
    from edgekd.pipeline.standing import standing

    stages = standing(run, intact=intact)

    def if_done(stage: str, read_artifact: Callable[[], T]) -> T | None:
        return read_artifact() if stage in stages else None

    return Contents(
        manifest=run.manifest.model_copy(update={"stages": stages}),
        models={
            role: Trained(run.card(role), run.training(role), run.history(role))
            for role in ROLES
            if _STAGE_OF[role] in stages
        },
        export=if_done("export", lambda: run.export),
        quantize=if_done("quantize", lambda: run.quantize),
        verify=if_done("verify", lambda: run.verify),
        profile=if_done("profile", lambda: run.profile),
        gate=if_done("gate", lambda: run.gate),
        operators=if_done("profile", lambda: run.operators),
        scheme=if_done("distill", lambda: run.scheme),
    )


def arrays(path: Path, names: Iterable[str] | None, *, what: str) -> dict[str, np.ndarray]:
    """Those of the named arrays that an .npz file has, or all of them; none without the file.

    Raises UsageError when it is not an archive of plain arrays.
    """
    import numpy as np

    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = set(archive.files) if names is None else set(names) & set(archive.files)
            return {name: np.asarray(archive[name]) for name in sorted(wanted)}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, BadZipFile, zlib.error):
        raise UsageError(
            f"not an archive of {what}",
            where=str(path),
            fix=f"run edgekd {path.parent.name} with --force",
        ) from None


def contents_of(profile: ProfileReport) -> Contents:
    """A profile alone, which no run holds."""
    from edgekd.pipeline.run import Manifest

    manifest = Manifest(edgekd="", command="", base="", config={}, environment={})
    return Contents(manifest, {}, None, None, None, profile, None)


def latency_samples(run: Run) -> dict[str, np.ndarray]:
    """Seconds per call of every measurement, by `Latency.samples`; empty when they were not kept.

    Raises UsageError when `profile/samples.npz` is not an archive of plain arrays.
    """
    import numpy as np

    found = arrays(run.path / "profile/samples.npz", None, what="latency samples")
    numbers = {name: a.astype(np.float64) for name, a in found.items() if a.dtype.kind in "uif"}
    return {name: a[np.isfinite(a) & (a > 0)] for name, a in numbers.items() if a.ndim == 1}
