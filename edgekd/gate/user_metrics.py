"""The user's own metrics: a function of logits and labels, with intervals from a bootstrap over samples."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import UsageError
from edgekd.gate.figures import Figure, logits_name
from edgekd.history.entry import printable
from edgekd.models.resolve import function
from edgekd.results import Interval, VerifyReport

_WHERE = "gate.metrics"
_RESAMPLES = 200


def figures(
    text: str,
    base: Path,
    verify: VerifyReport,
    logits: np.lib.npyio.NpzFile,
    budgeted: Collection[str],
) -> Iterator[Figure]:
    """`user.NAME` of every file of the student, and `user.NAME_drop`, teacher less student.

    What is not finite is left out, unless it is of the metrics `budgeted`.

    The function `text` names gets logits (n, classes) float32 and labels (n,) int64, and gives
    numbers by name. Teacher and student are resampled together (Efron and Tibshirani 1993, ch. 13).
    Raises UsageError for a function that fails, or gives anything else.
    """
    metric = function(text, base, where=_WHERE)
    labels = logits["labels"]
    for file in verify.files:
        if file.role != "student":
            continue
        student = logits[f"{file.runtime}/{logits_name(file)}"]
        teacher = logits[f"{file.runtime}/teacher"]
        values, drops = _of_both(metric, text, teacher, student, labels)
        random = np.random.default_rng(0)
        resampled = [
            _of_both(metric, text, teacher[rows], student[rows], labels[rows])
            for rows in random.integers(0, len(labels), (_RESAMPLES, len(labels)))
        ]
        for position, (suffix, points) in enumerate((("", values), ("_drop", drops))):
            for name, value in points.items():
                spread = [both[position].get(name, math.nan) for both in resampled]
                finite = [resample for resample in spread if math.isfinite(resample)]
                named = f"user.{name}{suffix}"
                if not math.isfinite(value) or not finite:
                    if named in budgeted:
                        raise UsageError(
                            f"{text} gives {named} = {value}; should give finite numbers",
                            where=_WHERE,
                        )
                    continue
                yield Figure(
                    named,
                    value,
                    _interval(finite, value),
                    file.runtime,
                    variant=file.variant,
                )


def _of_both(
    metric: Callable[..., Any],
    text: str,
    teacher: np.ndarray,
    student: np.ndarray,
    labels: np.ndarray,
) -> tuple[dict[str, float], dict[str, float]]:
    """The student's values, and how far they are below the teacher's."""
    ours, theirs = (_call(metric, text, logits, labels) for logits in (student, teacher))
    return ours, {name: theirs[name] - value for name, value in ours.items() if name in theirs}


def _call(
    metric: Callable[..., Any], text: str, logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    try:
        values = metric(logits.copy(), labels.copy())
        if not isinstance(values, Mapping):
            raise TypeError(f"gave a {type(values).__name__}; should give {{name: number}}")
        return {_name(name): float(value) for name, value in values.items()}
    except (Exception, SystemExit) as error:
        # On one line: a line of its own could be a command to the CI service that reads it.
        said = printable(error, 300) or "no message"
        raise UsageError(
            f"{text} failed on logits {logits.shape}: {type(error).__name__}: {said}",
            where=_WHERE,
        ) from None


def _name(name: object) -> str:
    """As a budget can have it."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        raise ValueError(f"the name {name!r:.80} should be letters, digits and _, at most 64")
    return name


def _interval(finite: list[float], point: float) -> Interval:
    """The 95 % percentile interval of a finite `point`, which it contains."""
    low, high = np.quantile(finite, [0.025, 0.975])
    return min(float(low), point), max(float(high), point)
