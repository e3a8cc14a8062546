"""Labels that are numbers: what regression and quantiles learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


def of_numbers(y: np.ndarray, config: Data) -> bool:
    """Whether labels are numbers to be predicted: floats are, integers where `data.task` says so."""
    return y.dtype.kind == "f" or config.task in ("regression", "quantile")


def numbers(
    y: np.ndarray, names: np.ndarray | None, config: Data, *, where: str
) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Labels (n, outputs) float32, a name for each output, and the task.

    `y` is (n,) or (n, numbers) and `names` what the numbers are called. For quantiles every number comes
    once for each level. Raises UsageError for anything else.
    """
    import numpy as np

    if y.dtype.kind not in "iuf" or y.ndim not in (1, 2) or 0 in y.shape:
        raise UsageError(
            f"labels for {config.task or 'regression'} are {y.dtype} of shape {y.shape}",
            where=where,
            fix="should be numbers, (n,) or (n, outputs)",
        )
    exact = y.reshape(len(y), -1).astype(np.float64)
    with np.errstate(over="ignore"):
        labels = exact.astype(np.float32)
    if np.isfinite(labels).all():
        spread, rounded = exact.std(axis=0), np.abs(labels - exact).max(axis=0)
        if (rounded > 0.01 * spread).any() and (spread > 0).any():
            raise UsageError(
                f"float32 rounds labels by up to {rounded.max():g}, and they differ by {spread.min():g}",
                where=where,
                fix="take a constant off them, such as their mean",
            )
    count = labels.shape[1]
    if names is None:
        told = ("y",) if count == 1 else tuple(f"y{i}" for i in range(count))
    else:
        told = tuple(str(name) for name in names.reshape(-1))
    if len(told) != count or len(set(told)) != count:
        raise UsageError(f"{len(set(told))} different names for {count} outputs", where=where)
    if config.task != "quantile":
        return labels, told, "regression"
    levels = [f"{level:g}" for level in config.quantiles]
    every = tuple(f"{name} at {level}" for name in told for level in levels)
    return np.repeat(labels, len(levels), axis=1), every, f"quantile:{','.join(levels)}"
