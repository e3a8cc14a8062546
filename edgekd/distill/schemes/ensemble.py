"""Hinton, Vinyals, Dean 2015, §1: the knowledge of an ensemble in one small model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from edgekd.config.schema import Model, Weighted
from edgekd.distill.method import Kind
from edgekd.distill.scheme import ANSWERS, Scheme, number_or_named, scheme

if TYPE_CHECKING:
    from edgekd.distill.workshop import Known, Workshop


@scheme("ensemble")
class EnsembleScheme(Scheme):
    """The student learns from the mean of the run's teacher and of other `members`.

    Members without weights are trained as `teacher.train` says, from other initial weights in another
    order of the samples; they stay in student/members/.
    """

    gives: ClassVar[frozenset[Kind] | None] = ANSWERS
    trains_teachers: ClassVar[bool] = True
    members: int | list[Weighted] = Field(
        2, description="So many more of the teacher's architecture, or networks as under `teacher`."
    )
    mean: Literal["arithmetic", "geometric"] = Field(
        "arithmetic", description="Of the probabilities, or of the logits."
    )
    weights: list[float] | None = Field(
        None, description="Of the teacher, then of each member; null: equal."
    )
    temperature: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="At which the arithmetic mean is taken; null: that of kd, or 1 without it.",
    )

    @field_validator("members", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return number_or_named(value)

    @model_validator(mode="after")
    def _counted(self) -> EnsembleScheme:
        count = self.members if isinstance(self.members, int) else len(self.members)
        if not 1 <= count <= 100:
            raise ValueError("members should be 1 to 100")
        if self.weights is None:
            return self
        if len(self.weights) != count + 1:
            raise ValueError(
                f"weights has {len(self.weights)} values for the teacher and {count} members"
            )
        if min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf"):
            raise ValueError("weights should be 0 or more, and not all 0")
        return self

    def needs_network(self, teacher: Weighted) -> bool:
        return isinstance(self.members, int)

    def networks(self) -> dict[str, Model]:
        given = [] if isinstance(self.members, int) else self.members
        return {f"members.{i}": network for i, network in enumerate(given)}

    def train(self, workshop: Workshop) -> None:
        ensemble = self.ensemble(workshop)
        workshop.fit("student", workshop.student, teacher=ensemble, objective=workshop.objective)

    def ensemble(self, workshop: Workshop) -> Known:
        """The teacher and its members, trained."""
        from edgekd.distill.workshop import Known
        from edgekd.teachers.ensemble import Ensemble

        teacher = workshop.context.config.teacher
        networks = [teacher] * self.members if isinstance(self.members, int) else self.members
        knowing = [workshop.teacher]
        for k, network in enumerate(networks, 1):
            given = None if isinstance(self.members, int) else network.weights
            knowing.append(workshop.member(f"member {k}", network, f"members/{k}", k, given))
        temperature = self.temperature or workshop.kd_temperature
        weights = self.weights or [1.0] * len(knowing)
        known = Known(
            Ensemble([k.teacher for k in knowing], self.mean, weights, temperature),
            [[k.identity for k in knowing], self.mean, weights, temperature],
        )
        workshop.note("ensemble", known)
        return known
