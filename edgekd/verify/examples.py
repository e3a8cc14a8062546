"""Which test samples show best what the student lost and won: a few that people can look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np

# Of the run's data that a run keeps.
_MOST_BYTES = 8 * 2**20


def pick(
    labels: np.ndarray, teacher: np.ndarray, students: Iterable[np.ndarray], count: int
) -> np.ndarray:
    """At most `count` positions (int64) of samples that only one of teacher and student gets right.

    `labels` is (n,), `teacher` and every student are logits (n, classes). Two thirds of a student's
    are what it lost, the others what it won: every confusion (label, answer) once before any comes
    again, the surest mistakes first; students take turns.
    """
    lists = []
    for student in students:
        right = teacher.argmax(1) == labels, student.argmax(1) == labels
        lost = _surest(labels, student, np.flatnonzero(right[0] & ~right[1]))
        won = _surest(labels, teacher, np.flatnonzero(right[1] & ~right[0]))
        kept = lost[: max(count - len(won), -(-2 * count // 3))]
        lists.append(kept + won[: count - len(kept)])
    turns = (p for turn in zip_longest(*lists) for p in turn if p is not None)
    return np.array(list(dict.fromkeys(turns))[:count], dtype=np.int64)


def within(positions: np.ndarray, sample_bytes: int) -> np.ndarray:
    """As many of them, from the front, as fit 8 MiB together."""
    return positions[: _MOST_BYTES // max(1, sample_bytes)]


def _surest(labels: np.ndarray, wrong: np.ndarray, positions: np.ndarray) -> list[int]:
    """Mistakes by how far the wrong answer is ahead of the right one, confusions taking turns."""
    answers = wrong[positions].argmax(1)
    ahead = wrong[positions, answers] - wrong[positions, labels[positions]]
    order = np.lexsort((positions, -ahead))
    pairs = list(zip(labels[positions].tolist(), answers.tolist(), strict=True))
    turns = dict(zip(order.tolist(), _turns(pairs[i] for i in order), strict=True))
    return [int(positions[i]) for i in sorted(order.tolist(), key=turns.__getitem__)]


def _turns(pairs: Iterable[tuple[int, int]]) -> Iterator[int]:
    """How often each pair was there before."""
    seen: dict[tuple[int, int], int] = {}
    for pair in pairs:
        seen[pair] = seen.get(pair, -1) + 1
        yield seen[pair]
