"""The training objective: L = alpha · CE(labels) + Σ_k w_k · method_k, each term by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from edgekd.distill.method import Knowledge, Method


@dataclass(frozen=True)
class Objective:
    """`alpha` weights the hard-label cross-entropy, each method carries its own weight."""

    alpha: float = 1.0
    methods: tuple[Method, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return bool(self.methods)

    def terms(
        self, student: Knowledge, teacher: Knowledge | None, labels: Tensor, epoch: int = 0
    ) -> dict[str, Tensor]:
        """The weighted scalar terms of one batch of the (0-based) epoch; their sum is the loss."""
        terms: dict[str, Tensor] = {}
        if self.alpha:
            terms["cross_entropy"] = self.alpha * F.cross_entropy(student.logits, labels)
        for method in self.methods:
            assert teacher is not None
            warm = min(1.0, (epoch + 1) / max(1, method.warmup))
            terms[method.name] = warm * method.weight * method(student, teacher, labels)
        return terms
