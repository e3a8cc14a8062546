"""Which training samples calibrate: random, stratified, by the teacher's entropy, or a coreset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.data.resolve import Dataset
from edgekd.data.splits import take
from edgekd.distill.trainer import predict
from edgekd.quantize.recipes import Recipe
from edgekd.teachers.teacher import Teacher

# Entropies and distances are computed for at most this many training samples.
_POOL = 5000


def calibration_samples(
    recipe: Recipe, dataset: Dataset, teacher: Teacher, student: nn.Module
) -> np.ndarray:
    """Sorted indices of at most `recipe.samples` samples of the training split."""
    count = min(recipe.samples, len(dataset.train))
    random = np.random.default_rng(recipe.seed)
    match recipe.sampler:
        case "random":
            chosen = random.choice(dataset.train, count, replace=False)
        case "stratified":
            chosen = take(dataset.strata, dataset.train, count, recipe.seed, "calibration")
        case "entropy":
            pool = teacher.known(_pool(dataset, random, count))
            answers = torch.from_numpy(teacher.answers(dataset, pool))
            chosen = pool[evenly(entropy(answers), min(count, len(pool)))]
        case "coreset":
            pool = _pool(dataset, random, count)
            chosen = pool[k_center(penultimate(student, dataset, pool), count)]
    return np.sort(chosen)


def _pool(dataset: Dataset, random: np.random.Generator, count: int) -> np.ndarray:
    size = min(len(dataset.train), max(_POOL, count))
    return random.choice(dataset.train, size, replace=False)


def entropy(logits: Tensor) -> np.ndarray:
    """−Σ p log p of each row, in nats; of maps the mean over pixels."""
    log_p = torch.log_softmax(logits.double(), dim=1)
    entropies = -(log_p.exp() * log_p).sum(dim=1)
    values: np.ndarray = entropies.reshape(len(logits), -1).mean(dim=1).numpy()
    return values


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` values at evenly spaced ranks, the least and the greatest included."""
    order = np.argsort(values, kind="stable")
    positions: np.ndarray = order[np.round(np.linspace(0, len(order) - 1, count)).astype(int)]
    return positions


def k_center(features: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` rows, each the farthest from those before it (greedy k-center).

    Within twice the smallest possible covering radius; Sener and Savarese 2018, algorithm 1.
    """
    middle = ((features - features.mean(axis=0)) ** 2).sum(axis=1).argmin()
    chosen = [int(middle)]
    distance = ((features - features[middle]) ** 2).sum(axis=1)
    distance[middle] = -1
    for _ in range(count - 1):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = np.minimum(distance, ((features - features[farthest]) ** 2).sum(axis=1))
        distance[chosen] = -1
    return np.array(chosen)


def penultimate(model: nn.Module, dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """What enters the model's last linear layer, (n, features).

    Its logits where it has none, of maps their means.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    if not linear:
        found = predict(model, dataset, indices)
        return found.reshape(*found.shape[:2], -1).mean(dim=2).numpy()

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(1))

    hook: Callable[[], None] = linear[-1].register_forward_pre_hook(keep).remove
    try:
        predict(model, dataset, indices)
    finally:
        hook()
    return torch.cat(seen).numpy()
