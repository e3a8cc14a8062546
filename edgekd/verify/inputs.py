"""What the files are fed to be compared: real samples in batches of all kinds, and extreme inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.results import Tokens

# Real samples that are fed in every batch size.
FEW = 32
# Below the smallest normal float32, 1.2e-38.
_DENORMAL = 1e-40
# Far from any normalised sample.
_LARGE = 1e4


@dataclass(frozen=True)
class Case:
    """Inputs `x` (n, …) float32 (token ids: int64), fed `batch` at a time.

    `real`: made of samples as the model knows them; the others leave what INT8 files are calibrated
    for, and lower precisions can hold.
    """

    name: str
    x: np.ndarray
    batch: int
    real: bool


def cases(
    samples: np.ndarray,
    batches: Sequence[int],
    free: Sequence[int] = (),
    *,
    tokens: Tokens | None = None,
    seed: int = 0,
) -> list[Case]:
    """Everything that a file is compared on, from real normalised `samples` (n, …), or `tokens`.

    All samples are fed in the largest of `batches`, a few in each of the others. `free` are the
    axes of a sample (0 is the first after the batch) whose size the file leaves open.
    """
    largest, few = max(batches), samples[:FEW]
    full = samples if len(samples) >= largest else np.resize(samples, (largest, *samples.shape[1:]))
    found = [Case(f"batch {largest}", full, largest, real=True)]
    found += [Case(f"batch {b}", few, b, real=True) for b in sorted(set(batches) - {largest})]
    if tokens is not None:
        found += [_cut(few[:2])] if free and few.shape[1] > 1 else []
        return found + extreme_tokens(samples, tokens, seed=seed)
    found += [_other_size(few[:2], axis) for axis in free]
    return found + extremes(samples, seed=seed)


def extremes(samples: np.ndarray, *, seed: int = 0) -> list[Case]:
    """Inputs at and beyond the ends of the samples' range, one or two of each kind."""
    shape, low, high = samples.shape[1:], samples.min(), samples.max()
    mixed = np.random.default_rng(seed).random((2, *shape)) < 0.5
    fields = {
        "zeros": np.zeros((1, *shape)),
        "saturated low": np.full((1, *shape), low),
        "saturated high": np.full((1, *shape), high),
        "saturated both": np.where(mixed, low, high),
        "denormals": np.full((1, *shape), _DENORMAL),
        "large constant": np.full((1, *shape), _LARGE),
    }
    return [Case(name, x.astype(np.float32), len(x), real=False) for name, x in fields.items()]


def extreme_tokens(samples: np.ndarray, tokens: Tokens, *, seed: int = 0) -> list[Case]:
    """Ids (n, length) that no text gives: nothing but padding, one token, none of it padding."""
    length = samples.shape[1]
    alone = np.full((1, length), tokens.padding)
    alone[0, 0] = samples[0, 0]
    ids = np.random.default_rng(seed).integers(0, tokens.vocabulary, (2, length))
    fields = {
        "all padding": np.full((1, length), tokens.padding),
        "one token": alone,
        "largest id": np.full((1, length), tokens.vocabulary - 1),
        "random ids": ids,
    }
    return [Case(name, x.astype(np.int64), len(x), real=False) for name, x in fields.items()]


def _cut(few: np.ndarray) -> Case:
    """Texts half as long: positions above the longest length there are none."""
    x = np.ascontiguousarray(few[:, : few.shape[1] // 2])
    return Case(f"size {x.shape[1]}", x, len(x), real=True)


def _other_size(few: np.ndarray, axis: int) -> Case:
    """The samples longer by 3 along an axis of theirs, repeated from their start."""
    widths = [(0, 0)] * few.ndim
    widths[axis + 1] = (0, 3)
    x = np.ascontiguousarray(np.pad(few, widths, mode="wrap"))
    return Case(f"size {' × '.join(map(str, x.shape[1:]))}", x, len(x), real=True)
