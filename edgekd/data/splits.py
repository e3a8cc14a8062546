"""Deterministic, stratified splits: the same seed and labels give the same three index sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.config.schema import Data
from edgekd.errors import UsageError


@dataclass(frozen=True)
class Splits:
    """Sorted int64 sample indices, disjoint; every class is in each of the three."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    labels: np.ndarray, classes: tuple[str, ...], test: np.ndarray | None, config: Data, seed: int
) -> Splits:
    """Split by the configured shares, class by class; `test` marks a given test split.

    Raises UsageError when a class has too few samples for it to be in every split.
    """
    everything = np.arange(len(labels))
    if test is None:
        held_out = take(labels, everything, round(config.test * len(labels)), seed, "test")
    else:
        held_out = everything[test]
    rest = np.setdiff1d(everything, held_out)
    _check(labels, rest, held_out, classes)
    if config.limit is not None:
        needed = 2 * len(classes)
        if config.limit < needed:
            raise UsageError(
                f"{config.limit} samples are too few for {len(classes)} classes",
                where="data.limit",
                fix=f"should be {needed} or more",
            )
        rest = take(labels, rest, config.limit, seed, "limit train", least=2)
        held_out = take(labels, held_out, config.limit, seed, "limit test")
    validation = take(labels, rest, round(config.validation * len(rest)), seed, "validation")
    return Splits(np.setdiff1d(rest, validation), validation, held_out)


def take(
    labels: np.ndarray, among: np.ndarray, count: int, seed: int, purpose: str, least: int = 1
) -> np.ndarray:
    """About `count` of the indices `among`, each class by its share but at least `least` of it."""
    if count >= len(among):
        return among
    present, sizes = np.unique(labels[among], return_counts=True)
    quotas = _quotas(sizes, count, least)
    chosen = []
    for label, quota in zip(present, quotas, strict=True):
        members = among[labels[among] == label]
        random = np.random.default_rng([seed, int(label), *purpose.encode()])
        chosen.append(random.permutation(members)[:quota])
    return np.sort(np.concatenate(chosen))


def _quotas(sizes: np.ndarray, count: int, least: int) -> np.ndarray:
    """Largest-remainder shares of `count`, never below `least` nor above what there is."""
    exact = sizes * count / sizes.sum()
    quotas: np.ndarray = np.clip(np.floor(exact).astype(int), np.minimum(least, sizes), sizes)
    for label in np.argsort(quotas - exact, kind="stable"):
        if quotas.sum() < count and quotas[label] < sizes[label]:
            quotas[label] += 1
    while quotas.sum() > count and quotas.max() > least:
        quotas[np.argmax(quotas)] -= 1
    return quotas


def _check(
    labels: np.ndarray, rest: np.ndarray, test: np.ndarray, classes: tuple[str, ...]
) -> None:
    for label, name in enumerate(classes):
        training, testing = int((labels[rest] == label).sum()), int((labels[test] == label).sum())
        if training < 2 or testing < 1:
            raise UsageError(
                f"class {name!r} has {training} samples for training and validation and {testing} "
                "for testing; it needs at least 2 and 1",
                where="data.source",
                fix="add samples of this class, or leave it out",
            )
