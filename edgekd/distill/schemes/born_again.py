"""Furlanello et al. 2018, "Born Again Neural Networks" (arXiv 1805.04770)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgekd.distill.method import working
from edgekd.distill.scheme import ANSWERS, Scheme, scheme

if TYPE_CHECKING:
    from edgekd.config.schema import Config, Model
    from edgekd.distill.workshop import Workshop


@scheme("born_again")
class BornAgain(Scheme):
    """Generation k learns from generation k−1, all of the student's architecture; the last one ships.

    The first learns from the run's teacher, or from the labels alone. The mean of all generations is
    evaluated too; with `ensemble` one more student learns from it, and ships.
    """

    generations: int = Field(3, ge=2, le=100)
    first: Literal["teacher", "labels"] = Field(
        "teacher", description="What the first generation learns from."
    )
    ensemble: bool = Field(
        False, description="Distil the mean of the generations into the student."
    )

    def check(self, distill: Any) -> None:
        if not distill.methods.entries:
            raise ValueError("generations teach by methods, and methods is empty")
        if self.first == "labels" and distill.transfer.labels == 0:
            raise ValueError(
                "the first generation learns from labels, and transfer.labels is 0: set first to teacher"
            )
        for method in distill.methods.entries if self.ensemble else ():
            if not method.needs <= ANSWERS:
                raise ValueError(
                    f"{method.name} needs {' and '.join(sorted(method.needs))}, which an ensemble of "
                    f"generations has not; methods that work with it: {', '.join(working(ANSWERS))}"
                )

    def lessons(self, config: Config) -> list[tuple[Model, Model]]:
        first = [(config.teacher, config.student)] if self.first == "teacher" else []
        return [*first, (config.student, config.student)]

    def train(self, workshop: Workshop) -> None:
        from edgekd.distill.workshop import Known
        from edgekd.teachers.ensemble import Ensemble

        teacher = workshop.teacher if self.first == "teacher" else None
        generations = []
        for k in range(1, self.generations + 1):
            last = k == self.generations and not self.ensemble
            folder = "" if last else f"generations/{k}"
            name = "student" if last else f"generation {k}"
            module = workshop.fit(name, workshop.student, folder, teacher=teacher, seed=k - 1)
            teacher = workshop.known(module, folder)
            generations.append(teacher)
        temperature = workshop.kd_temperature
        ensemble = Known(
            Ensemble([g.teacher for g in generations], temperature=temperature),
            [[g.identity for g in generations], temperature],
        )
        workshop.note("ensemble of the generations", ensemble)
        if self.ensemble:
            workshop.fit("student", workshop.student, teacher=ensemble, seed=self.generations)
