"""Memories of embeddings of all training samples, which contrastive distillation draws from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.distill.method import Knowledge
from edgekd.distill.methods.crd import nce
from edgekd.errors import UsageError


class Contrast(nn.Module):
    """CRD's embeddings and memories; both, and Z, are in the checkpoint of the training."""

    memory_s: Tensor
    memory_t: Tensor
    z: Tensor
    by_class: Tensor
    first: Tensor
    size: Tensor
    classes: Tensor

    def __init__(
        self,
        width_s: int,
        width_t: int,
        population: Tensor,
        *,
        pair: Callable[[Knowledge, Knowledge], tuple[Tensor, Tensor]],
        dim: int,
        negatives: int,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.pair, self.negatives = pair, negatives
        self.temperature, self.momentum = temperature, momentum
        self.embed_s, self.embed_t = nn.Linear(width_s, dim), nn.Linear(width_t, dim)
        n = len(population)
        # Uniform with the variance of unit vectors, as the authors start.
        scale = (3 / dim) ** 0.5
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, (2 * torch.rand(n, dim) - 1) * scale)
        self.register_buffer("z", torch.full((2,), -1.0))
        # Samples sorted by class: those of other classes are what is left beside one slice. What has
        # no place in training (class −1) is nobody's negative.
        taking_part = (population >= 0).nonzero().squeeze(1)
        order = population[taking_part].argsort(stable=True)
        sizes = population[taking_part].bincount()
        if int((sizes > 0).sum()) < 2:
            raise UsageError("crd needs samples of two classes", where="distill.methods")
        constant = {
            "by_class": taking_part[order], "size": sizes, "first": sizes.cumsum(0) - sizes,
            "classes": population,
        }  # fmt: skip
        for name, value in constant.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        """The sum of both sides' contrast."""
        assert teacher.indices is not None
        f_s, f_t = self.pair(student, teacher)
        s = F.normalize(self.embed_s(f_s.flatten(1)))
        t = F.normalize(self.embed_t(f_t.flatten(1)))
        indices = teacher.indices.to(self.memory_s.device)
        chosen = torch.cat([indices[:, None], self.draw(self.classes[indices])], dim=1)
        losses = []
        for side, (own, memory) in enumerate(((s, self.memory_t), (t, self.memory_s))):
            # All products at once: a row for each of K samples would be read from everywhere.
            scores = (own @ memory.T / self.temperature).gather(1, chosen).exp()
            losses.append(nce(scores / self.density(side, scores), len(self.by_class)))
        self.remember(indices, s.detach(), t.detach())
        return losses[0] + losses[1]

    @torch.no_grad()
    def density(self, side: int, scores: Tensor) -> Tensor:
        """Z of a side, set by its first batch."""
        new = scores.mean() * len(self.by_class)
        self.z[side] = torch.where(self.z[side] < 0, new.to(self.z.dtype), self.z[side])
        return self.z[side].clone()  # the other side's may still be set before the backward pass

    def draw(self, classes: Tensor) -> Tensor:
        """K samples (n, K) of other classes than each of `classes` (n,), uniformly."""
        first, size = self.first[classes][:, None], self.size[classes][:, None]
        left = len(self.by_class) - size
        uniform = torch.rand(len(classes), self.negatives, device=left.device)
        position = (uniform * left).long().clamp_max(left - 1)
        return self.by_class[position + size * (position >= first)]

    @torch.no_grad()
    def remember(self, indices: Tensor, s: Tensor, t: Tensor) -> None:
        """V ← v·m + (1 − m)·new, of unit length."""
        for name, new in (("memory_s", s), ("memory_t", t)):
            memory = self.get_buffer(name)
            mixed = memory[indices] * self.momentum + new.to(memory.dtype) * (1 - self.momentum)
            # Another tensor: the backward pass still needs the old one.
            setattr(self, name, memory.index_copy(0, indices, F.normalize(mixed)))
