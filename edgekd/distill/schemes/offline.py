"""Hinton, Vinyals, Dean 2015: a fixed teacher, then its student (arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.distill.scheme import Scheme, scheme

if TYPE_CHECKING:
    from edgekd.distill.workshop import Workshop


@scheme("offline")
class Offline(Scheme):
    """The student learns from the run's teacher; without methods, from the labels alone."""

    def train(self, workshop: Workshop) -> None:
        teacher = workshop.teacher if workshop.config.methods.entries else None
        workshop.fit("student", workshop.student, teacher=teacher, objective=workshop.objective)
