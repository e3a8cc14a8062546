"""The training set of a specialist: half its own classes, half anything else (Hinton 2015, §5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgekd.data.resolve import Dataset


def enriched(dataset: Dataset, classes: Sequence[int], seed: int) -> tuple[Dataset, float]:
    """The data with labels 0 … k−1 for `classes` and k for all others, and how oversampled `classes` are.

    Trained on are all samples of `classes` and as many others, drawn at random, if there are. The
    second value is the odds of `classes` in the new training split by those in the old one.
    """
    own = np.isin(dataset.labels[dataset.train], classes)
    special, rest = dataset.train[own], dataset.train[~own]
    random = np.random.default_rng([seed, len(special), *b"enriched"])
    drawn = random.permutation(rest)[: len(special)]
    numbers = np.full(len(dataset.classes), len(classes))
    numbers[list(classes)] = np.arange(len(classes))
    data = replace(
        dataset,
        labels=numbers[dataset.labels],
        classes=(*(dataset.classes[c] for c in classes), "(others)"),
        train=np.sort(np.concatenate([special, drawn])),
    )
    return data, len(rest) / len(drawn)
