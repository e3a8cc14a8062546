"""Touvron et al. 2021, DeiT, "Training data-efficient image transformers", eq. 3 (arXiv 2012.12877)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgekd.distill.method import Knowledge, Method, method

if TYPE_CHECKING:
    from torch import Tensor


@method("hard", needs={"labels"})
class Hard(Method):
    """CE(student, argmax of the teacher): all that a label-only teacher can give."""

    dense: ClassVar[bool] = True
    labels_weight: ClassVar[float] = 0.5
    weight: float = Field(0.5, ge=0, allow_inf_nan=False)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(student.logits, teacher.logits.argmax(dim=1))
