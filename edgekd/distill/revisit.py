"""The teachers of a finished run again: its scheme goes through what it kept, and nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgekd.config.schema import Config, Model
from edgekd.data.resolve import Dataset
from edgekd.data.views import Views
from edgekd.distill.workshop import Known, Workshop
from edgekd.errors import UsageError
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context
from edgekd.progress import Silent
from edgekd.results import History


@dataclass(frozen=True)
class Asked:
    """A teacher, who learned from it (None: the run's own, whoever did), and what it was asked about."""

    known: Known
    taught: str | None
    views: Views


class Finished(Workshop):
    """A workshop whose folder is that of a finished stage; who would be asked is noted."""

    def __init__(self, run: Run, config: Config, base: Path) -> None:
        super().__init__(Context(config, base, run, run.path / "student", Silent()))
        self.lessons: list[tuple[Known, str, Dataset]] = []

    def teachers(self) -> Iterator[Asked]:
        """The run's own first, then those of its scheme, each once."""
        seen = []
        if "distill" in self.context.run.manifest.stages:
            self.config.scheme.entry.train(self)
        for known, taught, dataset in [(self.teacher, None, self.dataset), *self.lessons]:
            if known.identity not in seen:
                seen.append(known.identity)
                data = self.context.config.data
                views = Views(self._taught(known.teacher, dataset), data.augment, data.seed)
                yield Asked(known, taught, views)

    def fit(
        self,
        name: str,
        network: Model,
        folder: str = "",
        *,
        teacher: Known | None = None,
        dataset: Dataset | None = None,
        **how: Any,
    ) -> nn.Module:
        """Load what was kept, and note its teacher."""
        if teacher is not None:
            self.lessons.append((teacher, name, dataset or self.dataset))
        return super().fit(name, network, folder, teacher=teacher, dataset=dataset, **how)

    def train(self, name: str, *_: Any, **how: Any) -> History:
        """Nothing is trained here."""
        raise UsageError(
            f"the {name} that this run trained is not there any more",
            where=str(self.context.folder),
            fix="distill again",
        )

    def note(self, name: str, known: Known, **about: Any) -> None:
        """Nobody asks how good they are."""
