"""The transfer set: what a student learns from, where it is not the whole training split.

Hinton, Vinyals, Dean 2015: it may be unlabelled (§2), a part of the data (§5.6), or lack classes (§3).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekd.config.schema import Data, Transfer
from edgekd.data.resolve import Dataset, unlabelled_inputs
from edgekd.data.splits import take
from edgekd.errors import UsageError
from edgekd.registry import suggestion

UNKNOWN = -1  # the label of a sample whose class the student is not told


def transfer_set(
    dataset: Dataset, transfer: Transfer, data: Data, seed: int, base: Path
) -> Dataset:
    """The data with another training split; samples that have no label for the student have −1.

    Validation and test splits stay. Raises UsageError for classes that are not there, for a share that
    leaves nothing or no label, and for unlabelled samples of another form.
    """
    train = _of_classes(dataset, transfer)
    train = take(dataset.strata, train, round(transfer.share * len(train)), seed, "transfer share")
    if len(train) < 2:
        raise UsageError(f"leaves {len(train)} samples to learn from", where="distill.transfer")
    labels = dataset.labels
    if transfer.labels < 1:
        count = round(transfer.labels * len(train))
        if transfer.labels > 0 and count == 0:
            raise UsageError(
                f"{transfer.labels:g} of {len(train)} samples is none",
                where="distill.transfer.labels",
                fix="raise it; 0, with alpha: 0, is a student that is told no label",
            )
        told = take(labels, train, count, seed, "transfer labels", 0)
        labels = labels.copy()
        labels[np.setdiff1d(train, told)] = UNKNOWN
    inputs = dataset.inputs
    if transfer.unlabelled is not None:
        more = unlabelled_inputs(transfer.unlabelled, data, base, like=dataset)
        train = np.concatenate([train, np.arange(len(inputs), len(inputs) + len(more))])
        inputs = np.concatenate([inputs, more])
        labels = np.concatenate([labels, np.full(len(more), UNKNOWN, labels.dtype)])
    return replace(dataset, inputs=inputs, labels=labels, train=train)


def _of_classes(dataset: Dataset, transfer: Transfer) -> np.ndarray:
    """The training split without the classes that are left out."""
    named = [*transfer.without, *(transfer.only or ())]
    for name in named:
        if name not in dataset.classes:
            raise UsageError(
                f"unknown class {name!r}{suggestion(name, dataset.classes)}",
                where="distill.transfer",
            )
    if not named:
        return dataset.train
    numbers = [dataset.classes.index(name) for name in named]
    of = np.isin(dataset.labels[dataset.train], numbers)
    return dataset.train[of if transfer.only else ~of]
