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
    with np.errstate(over="ignore"):
        labels = y.reshape(len(y), -1).astype(np.float32)
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
