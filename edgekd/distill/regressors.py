"""Layers that map the student's features to the teacher's shape, and losses with parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.distill.method import Knowledge
from edgekd.errors import UsageError


class Trained(nn.Module):
    """A loss with parameters: `loss(parts, student, teacher, labels)`."""

    def __init__(self, parts: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts, self.loss = parts, loss

    def forward(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        """The scalar loss."""
        return self.loss(self.parts, student, teacher, labels)


class TwoStage(Trained):
    """A loss that prepares its own parts in the epochs that it is alone, before it teaches."""

    def __init__(
        self, parts: nn.Module, first: Callable[..., Tensor], then: Callable[..., Tensor]
    ) -> None:
        super().__init__(parts, then)
        self.first = first

    def initial(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        """The scalar loss of the first stage."""
        return self.first(self.parts, student, teacher, labels)


def regressors(pairs: Iterable[tuple[Tensor, Tensor]]) -> nn.ModuleList:
    """One `regressor` per pair of (student's, teacher's) features."""
    return nn.ModuleList(regressor(s, t) for s, t in pairs)


def regressor(student: Tensor, teacher: Tensor) -> nn.Module:
    """1×1 convolution and batch norm for maps (n, c, h, w), a linear layer for (n, …, c).

    Maps of different size are brought to the smaller one by `matched`.
    Raises UsageError for features that have no common form.
    """
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise UsageError(
            f"features of shape {tuple(student.shape)} cannot be mapped to {tuple(teacher.shape)}",
            where="distill.methods",
            fix="choose other taps",
        )
    if student.ndim == 4:
        channels = teacher.shape[1]
        return nn.Sequential(
            nn.Conv2d(student.shape[1], channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
    return nn.Linear(student.shape[-1], teacher.shape[-1])


def check_maps(pairs: list[tuple[Tensor, Tensor]], method: str, least: int) -> None:
    """Raises UsageError unless there are at least `least` pairs, all of maps (n, c, h, w)."""
    if len(pairs) < least or any(f.ndim != 4 for pair in pairs for f in pair):
        raise UsageError(
            f"{method} needs feature maps (n, c, h, w) of at least {least} "
            f"{'stage' if least == 1 else 'stages'}; it got "
            + ", ".join(f"{tuple(t.shape)} → {tuple(s.shape)}" for s, t in pairs),
            where="distill.methods",
            fix="choose other taps",
        )


def as_map(f: Tensor) -> Tensor:
    """Tokens (n, tokens, c) as a map (n, c, h, w), so that methods on maps take transformers too.

    Square grids keep their form, after a class token too, which is left out; others are (tokens, 1).
    """
    if f.ndim != 3:
        return f
    n, tokens, channels = f.shape
    side = math.isqrt(tokens)
    if side * side != tokens and math.isqrt(tokens - 1) ** 2 == tokens - 1 > 1:
        f, side = f[:, 1:], math.isqrt(tokens - 1)
    height = side if side * side == f.shape[1] else f.shape[1]
    return f.transpose(1, 2).reshape(n, channels, height, -1)


def matched(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (n, c, h, w) at the smaller of both sizes, by adaptive average pooling."""
    if a.ndim != 4 or b.ndim != 4:
        return a, b
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pooled(a, size), _pooled(b, size)


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)
