"""Hinton, Vinyals, Dean 2015, §5: specialists for confusable classes, and all of them in one student."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgekd.config.schema import Training, Weighted
from edgekd.distill.method import Kind
from edgekd.distill.scheme import ANSWERS, Scheme, scheme
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from edgekd.data.resolve import Dataset
    from edgekd.distill.workshop import Known, Workshop
    from edgekd.teachers.specialists import Classes, Expert


@scheme("specialists")
class SpecialistsScheme(Scheme):
    """The run's teacher is the generalist; specialists start as it and learn a few classes and a dustbin.

    Their classes are those that it confuses; half of their samples are of these. What generalist and
    relevant specialists say together (eq. 5) teaches the student. They stay in student/specialists/.
    """

    gives: ClassVar[frozenset[Kind] | None] = ANSWERS
    trains_teachers: ClassVar[bool] = True
    count: int = Field(3, ge=1, le=1000, description="Specialists; fewer where sets are the same.")
    classes: int = Field(4, ge=2, description="Of each specialist, fewer than the data has.")
    top: int = Field(
        1,
        ge=1,
        description="Ask the specialists of so many most probable classes of the generalist.",
    )
    epochs: int = Field(10, ge=1, le=100_000, description="Of each; else as `teacher.train`.")
    rate: float = Field(1.0, gt=0, le=10, description="Learning rate, as a share of the teacher's.")
    soft: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the generalist's soft targets (T = 4) against overfitting.",
    )
    temperature: float = Field(
        4.0, gt=0, le=1000, description="Of the predictions whose covariance is clustered."
    )

    def needs_network(self, teacher: Weighted) -> bool:
        return True

    def check_data(self, student: nn.Module, dataset: Dataset) -> None:
        if self.classes >= len(dataset.classes):
            raise UsageError(
                f"specialists of {self.classes} classes leave none for the dustbin: "
                f"the data has {len(dataset.classes)}",
                where="distill.scheme.specialists.classes",
            )

    def train(self, workshop: Workshop) -> None:
        ensemble = self.ensemble(workshop)
        workshop.fit("student", workshop.student, teacher=ensemble)

    def ensemble(self, workshop: Workshop) -> Known:
        """Generalist and trained specialists."""
        from edgekd.distill.workshop import Known
        from edgekd.teachers.specialists import Specialists

        workshop.note("generalist", workshop.teacher)
        experts, identities = [], [workshop.teacher.identity]
        for k, classes in enumerate(self.sets(workshop), 1):
            expert, identity = self.expert(workshop, k, classes)
            experts.append(expert)
            identities.append(identity)
        known = Known(
            Specialists(workshop.teacher.teacher, experts, self.top), [identities, self.top]
        )
        workshop.note("generalist and specialists", known)
        return known

    def sets(self, workshop: Workshop) -> list[Classes]:
        """The classes of each specialist, from the generalist's predictions on the training split."""
        from edgekd.distill.trainer import predict
        from edgekd.teachers.specialists import confusable

        names = workshop.dataset.classes
        module = workshop.network_of(workshop.teacher)
        found = confusable(
            predict(module, workshop.everything, workshop.everything.train), self.count, self.classes,
            temperature=self.temperature, seed=workshop.context.config.seed,
        )  # fmt: skip
        for k, classes in enumerate(found, 1):
            workshop.say(f"specialist {k}: {', '.join(names[c] for c in classes)}")
        return found

    def expert(self, workshop: Workshop, k: int, classes: Classes) -> tuple[Expert, object]:
        """Specialist number k from 1, trained, and what its answers depend on."""
        import copy

        from edgekd.data.enrich import enriched
        from edgekd.distill.methods.kd import KD
        from edgekd.distill.objective import Objective
        from edgekd.distill.workshop import Known
        from edgekd.teachers.kinds.torch import TorchTeacher
        from edgekd.teachers.specialists import Expert, Specialist

        name, folder, network = (
            f"specialist {k}", f"specialists/{k}", workshop.context.config.teacher,
        )  # fmt: skip
        generalist = workshop.network_of(workshop.teacher)
        module = Specialist(copy.deepcopy(generalist).requires_grad_(True), classes)
        data, oversampled = enriched(workshop.everything, classes, workshop.context.config.seed + k)
        if workshop.finished(folder):
            workshop.load(module.model, folder)
        else:
            methods = (KD(temperature=4.0, weight=self.soft),) if self.soft else ()
            teacher = Known(
                TorchTeacher(Specialist(generalist, classes)),
                [workshop.teacher.identity, list(classes)],
            )
            history = workshop.train(
                name, module, Objective(1 - self.soft, methods), folder,
                teacher=teacher if methods else None,
                training=self.training(workshop.context.config.teacher.train), dataset=data, seed=k,
            )  # fmt: skip
            workshop.keep(module.model, network, folder, history)
        known = workshop.known(module, folder)
        names = tuple(data.classes[:-1])
        workshop.note(name, known, dataset=data, folder=folder, model=network.model, classes=names)
        return Expert(known.teacher, classes, oversampled), [known.identity, list(classes)]

    def training(self, teacher: Training) -> Training:
        """Few epochs; the last is kept, as the validation split is not enriched."""
        return teacher.model_copy(
            update={
                "epochs": self.epochs,
                "learning_rate": teacher.learning_rate * self.rate,
                "select": "last",
            }
        )
