"""A PyTorch network as a teacher: white-box."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from edgekd.distill.method import Kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekd.distill.method import Knowledge


class Teacher(Protocol):
    """Always in evaluation mode, never with gradients."""

    @property
    def provides(self) -> frozenset[Kind]:
        """All that it can give."""

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """What it says of view `view` (n, …) of the samples `indices` (n,)."""


class TorchTeacher:
    """`module` can be looked into."""

    provides: ClassVar[frozenset[Kind]] = frozenset(
        {"features", "attentions", "logits", "probabilities", "labels"}
    )

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """Its logits; features are read by taps on `module`."""
        import torch

        from edgekd.distill.method import Knowledge

        with torch.inference_mode():
            return Knowledge(self.module(inputs))
