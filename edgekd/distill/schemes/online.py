"""Zhang et al. 2018, "Deep Mutual Learning" (arXiv 1706.00384)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from edgekd.config.schema import Model
from edgekd.distill.method import Kind
from edgekd.distill.scheme import ANSWERS, Scheme, number_or_named, scheme

if TYPE_CHECKING:
    from edgekd.distill.workshop import Workshop


@scheme("online")
class Online(Scheme):
    """Peers learn from the labels and from each other at once: CE + weight · mean KL(p_other ‖ p_own).

    All take their step from the same batch at the same time. The first peer ships, and its accuracy
    selects the epoch; the others stay in student/peers/. With `methods` all learn from the run's
    teacher, too.
    """

    gives: ClassVar[frozenset[Kind] | None] = ANSWERS
    teaches: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {"alpha": 1.0, "methods": []}
    peers: int | list[Model] = Field(
        2, description="How many of the student's architecture, or the networks beside the student."
    )
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    temperature: float = Field(1.0, gt=0, le=1000)

    @field_validator("peers", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return number_or_named(value)

    @model_validator(mode="after")
    def _counted(self) -> Online:
        if isinstance(self.peers, int) and not 2 <= self.peers <= 100:
            raise ValueError("peers should be 2 to 100: all that learn together")
        if isinstance(self.peers, list) and not self.peers:
            raise ValueError("peers should name at least one network beside the student")
        return self

    def networks(self) -> dict[str, Model]:
        given = [] if isinstance(self.peers, int) else self.peers
        return {f"peers.{i}": network for i, network in enumerate(given)}

    def check(self, distill: Any) -> None:
        super().check(distill)
        for method in distill.methods.entries:
            if method.alone:
                raise ValueError(f"{method.name} cannot be `alone` among peers")

    def train(self, workshop: Workshop) -> None:
        from edgekd.distill.peers import Mutual, Peers

        student = workshop.student
        others = [student] * (self.peers - 1) if isinstance(self.peers, int) else self.peers
        networks = [student, *others]
        folders = ["", *(f"peers/{k}" for k in range(2, len(networks) + 1))]
        if not workshop.finished():
            peers = Peers([workshop.build(n, seed=k) for k, n in enumerate(networks)])
            objective = Mutual(
                *workshop.recipe,
                peers=len(networks), weight=self.weight, temperature=self.temperature,
            )  # fmt: skip
            teacher = workshop.teacher if workshop.config.methods.entries else None
            history = workshop.train("peers", peers, objective, teacher=teacher)
            # The student last: with it the scheme is finished.
            for k in reversed(range(len(networks))):
                workshop.keep(peers.peers[k], networks[k], folders[k], history, seed=k)
        for k, (network, folder) in enumerate(zip(networks, folders, strict=True), 1):
            workshop.tell("student" if k == 1 else f"peer {k}", network, folder)
