"""Zhang et al. 2019, "Be Your Own Teacher" (arXiv 1905.08094)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgekd.distill.scheme import Scheme, scheme

if TYPE_CHECKING:
    from torch import nn

    from edgekd.data.resolve import Dataset
    from edgekd.distill.workshop import Workshop


@scheme("byot")
class BYOT(Scheme):
    """The student's deepest layer teaches exits on its earlier stages; only the student ships.

    Each exit learns (1 − share)·CE + share·T²·KL(deepest ‖ exit) + hint·‖F_exit − F_deepest‖².
    With `methods` the student learns from the run's teacher, too.
    """

    teaches: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {"alpha": 1.0, "methods": []}
    share: float = Field(0.3, ge=0, le=1, description="α: of the soft targets in an exit's loss.")
    hint: float = Field(0.03, ge=0, allow_inf_nan=False, description="λ")
    temperature: float = Field(3.0, gt=0, le=1000)

    def check(self, distill: Any) -> None:
        for method in distill.methods.entries:
            if method.alone:
                raise ValueError(f"{method.name} cannot be `alone` beside exits")

    def check_data(self, student: nn.Module, dataset: Dataset) -> None:
        from edgekd.distill.exits import own_stages

        own_stages(student, dataset.tensor(dataset.train[:4]))

    def train(self, workshop: Workshop) -> None:
        from edgekd.distill.exits import OwnTeacher

        config, dataset = workshop.config, workshop.dataset
        module = workshop.build(workshop.student)
        objective = OwnTeacher(
            *workshop.recipe,
            share=self.share, hint=self.hint, temperature=self.temperature,
        )  # fmt: skip
        example = dataset.tensor(dataset.train[:4])
        objective.attach(module, example, len(dataset.classes), workshop.context.config.seed)
        teacher = workshop.teacher if config.methods.entries else None
        workshop.fit(
            "student", workshop.student, teacher=teacher, module=module, objective=objective
        )
