"""Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant" (arXiv 1902.03393)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from edgekd.config.schema import Model
from edgekd.distill.scheme import Scheme, named, scheme

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.distill.workshop import Workshop


@scheme("assistant")
class Assistant(Scheme):
    """A chain of middle-sized networks: each is distilled from the one before, the student from the last.

    All by the configured methods and settings; assistants stay in student/assistants/.
    """

    chain: list[Model] = Field(
        min_length=1, description="From the teacher's side: zoo:NAME or {model: …, args: …}."
    )

    @field_validator("chain", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return named(value)

    def networks(self) -> dict[str, Model]:
        return {f"chain.{i}": network for i, network in enumerate(self.chain)}

    def lessons(self, config: Config) -> list[tuple[Model, Model]]:
        return list(itertools.pairwise([config.teacher, *self.chain, config.student]))

    def check(self, distill: Any) -> None:
        if not distill.methods.entries:
            raise ValueError("assistants teach by methods, and methods is empty")

    def train(self, workshop: Workshop) -> None:
        teacher = workshop.teacher
        for k, network in enumerate(self.chain, 1):
            name, folder = f"assistant {k}", f"assistants/{k}"
            module = workshop.fit(name, network, folder, teacher=teacher)
            teacher = workshop.known(module, folder)
        workshop.fit("student", workshop.student, teacher=teacher)
