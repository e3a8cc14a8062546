"""Networks that learn together: what they are as one model, and what they learn from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.distill.method import Knowledge, Method
from edgekd.distill.objective import Objective


class Peers(nn.Module):
    """Runs all peers while they train; answers, and is evaluated, as the first one."""

    def __init__(self, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.peers = nn.ModuleList(peers)

    def forward(self, x: Tensor) -> Tensor:
        """The first peer's logits (n, classes); the others' pass the taps peers.1, peers.2, …"""
        running = self.peers if self.training else self.peers[:1]
        answers: list[Tensor] = [peer(x) for peer in running]
        return answers[0]


class Mutual(Objective):
    """Every peer's own objective, and what it learns from the others: Zhang et al. 2018, eqs. 4–7."""

    more: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float,
        methods: tuple[Method, ...],
        *,
        peers: int,
        weight: float,
        temperature: float,
    ) -> None:
        super().__init__(alpha, methods)
        self.weight, self.temperature = weight, temperature
        self.taps = tuple(f"peers.{k}" for k in range(peers))

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Every peer's logits."""
        return self.taps

    def prepare(
        self,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Tensor,
        seed: int,
        population: Tensor | None = None,
    ) -> None:
        """Nothing: the methods of peers look at logits only."""

    def terms(
        self,
        student: Knowledge,
        teacher: Knowledge | None,
        labels: Tensor,
        epoch: int = 0,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Of every peer, by its number from 1."""
        logits = [student.features[tap] for tap in self.taps]
        terms: dict[str, Tensor] = {}
        for k, (z, loss) in enumerate(
            zip(logits, mutual(logits, self.temperature), strict=True), 1
        ):
            own = super().terms(Knowledge(z), teacher, labels, epoch, targets)
            terms |= {f"peer {k} {name}": term for name, term in own.items()}
            terms[f"peer {k} mutual"] = self.weight * loss
        return terms


def mutual(logits: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
    """For each peer k: 1/(K−1) Σ_l T²·KL(p_l ‖ p_k). No gradient flows into the others."""
    T = temperature
    log_p = [(z / T).log_softmax(dim=1) for z in logits]
    losses = []
    for k, own in enumerate(log_p):
        others = [log.detach() for i, log in enumerate(log_p) if i != k]
        kl = [(other.exp() * (other - own)).sum(dim=1).mean() for other in others]
        losses.append(T**2 * torch.stack(kl).mean())
    return losses
