"""Regression to the teacher's numbers: what Ba and Caruana 2014 (arXiv 1312.6184) do with logits, eq. 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from edgekd.distill.method import Loss


@method("mse", needs={"logits"})
class MSE(Method):
    """mean ((z − v) / σ)² of student's and teacher's outputs; σ is each output's deviation in the labels.

    Where there are no numbers in the labels, σ is 1.
    """

    numbers: ClassVar[bool] = True

    @property
    def every_logit(self) -> bool:
        """All count alike."""
        return True

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        """Without deviations."""
        return (student.logits - teacher.logits).square().mean()

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        """With the deviations of the training split."""
        population = teacher.population
        if population is None or not population.is_floating_point():
            return self
        sigma = population.std(dim=0, correction=0)

        def loss(student: Knowledge, teacher: Knowledge, labels: Tensor) -> torch.Tensor:
            error = student.logits - teacher.logits
            return (error / sigma.to(error.device)).square().mean()

        return loss
