"""Exits on a network's earlier stages, which its own deepest layer teaches; none of them ships."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.distill.method import Knowledge, Method
from edgekd.distill.objective import Objective
from edgekd.distill.regressors import as_map
from edgekd.distill.taps import Tapped, stages
from edgekd.errors import UsageError
from edgekd.tasks.kinds.classification import cross_entropy


class Exit(nn.Module):
    """A stage's map (n, c, h, w) to features of the deepest (n, C), and to logits (n, classes)."""

    def __init__(self, shape: torch.Size, deepest: torch.Size, classes: int) -> None:
        super().__init__()
        channels, width, size = shape[1], deepest[1], shape[2]
        layers: list[nn.Module] = []
        # As many halvings as the network itself makes on the way, and one layer at least.
        while not layers or size >= 2 * deepest[2]:
            stride = 2 if size >= 2 * deepest[2] else 1
            convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels, size = width, -(-size // stride)
        self.bottleneck, self.fc = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """The features F_i and the logits of this exit."""
        features = self.bottleneck(f).mean((2, 3))
        return features, self.fc(features)


class OwnTeacher(Objective):
    """The configured objective, and Zhang et al. 2019, eqs. 3–6, for every exit i:

    (1 − α)·CE(q_i, y) + α·T²·KL(q_C ‖ q_i) + λ·‖F_i − F_C‖²/C, the deepest C without gradient.
    """

    more: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float,
        methods: tuple[Method, ...],
        *,
        share: float,
        hint: float,
        temperature: float,
    ) -> None:
        super().__init__(alpha, methods)
        self.share, self.hint, self.temperature = share, hint, temperature
        self.stages: list[str] = []
        self.exits = nn.ModuleList()

    def attach(self, student: nn.Module, inputs: Tensor, classes: int, seed: int) -> None:
        """Find the stages with one batch and make the exits. Raises UsageError without two stages."""
        self.stages = own_stages(student, inputs)
        was_training = student.training
        student.eval()
        with torch.no_grad(), Tapped(student, self.stages) as tapped:
            seen = tapped(inputs)[1]
        student.train(was_training)
        maps = [as_map(seen[name]) for name in self.stages]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            exits = [Exit(f.shape, maps[-1].shape, classes) for f in maps[:-1]]
        self.exits = nn.ModuleList(exits)
        self.trained["exits"] = self.exits

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The stages, and what the methods read."""
        return tuple(dict.fromkeys([*super().student_taps, *self.stages]))

    def prepare(
        self,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Tensor,
        seed: int,
        population: Tensor | None = None,
    ) -> None:
        """As the configured objective, with the exits beside its own layers."""
        super().prepare(student, teacher, inputs, seed, population)
        self.trained["exits"] = self.exits

    def terms(
        self,
        student: Knowledge,
        teacher: Knowledge | None,
        labels: Tensor,
        epoch: int = 0,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The configured terms; the exits' three, each summed over the exits."""
        terms = super().terms(student, teacher, labels, epoch, targets)
        maps = [as_map(student.features[name]) for name in self.stages]
        answers = [e(f) for e, f in zip(self.exits, maps[:-1], strict=True)]
        deepest, T = maps[-1].mean((2, 3)).detach(), self.temperature
        log_p = (student.logits.detach() / T).log_softmax(dim=1)
        ce, kl, hints = [], [], []
        for features, z in answers:
            log_q = (z / T).log_softmax(dim=1)
            ce.append(cross_entropy(z, labels if targets is None else targets))
            kl.append(T**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean())
            hints.append(F.mse_loss(features, deepest))
        terms["exits cross_entropy"] = (1 - self.share) * torch.stack(ce).sum()
        terms["exits kd"] = self.share * torch.stack(kl).sum()
        terms["exits hint"] = self.hint * torch.stack(hints).sum()
        return {name: term for name, term in terms.items() if name != "exits hint" or self.hint}


def own_stages(student: nn.Module, inputs: Tensor) -> list[str]:
    """The stages of a network that can teach itself. Raises UsageError without two."""
    found = stages(student, inputs)
    if len(found) < 2:
        raise UsageError(
            f"byot needs a network of at least two stages, and finds {len(found)}",
            where="distill.scheme",
            fix="it is for networks whose maps or tokens pass several blocks",
        )
    return found
