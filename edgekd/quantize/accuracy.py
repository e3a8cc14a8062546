"""Accuracy-aware: the most sensitive layers go back to float32 until accuracy holds, in few evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgekd.errors import StageError
from edgekd.progress import Task
from edgekd.quantize.backend import Quantized
from edgekd.quantize.sensitivity import SUFFIX, logits
from edgekd.results import LayerSensitivity, TradeOff


class TradeOffs:
    """Accuracy and size of a file with the first k of an order of layers in float32."""

    def __init__(
        self,
        format: str,
        quantized: Quantized,
        inputs: np.ndarray,
        score: Callable[[np.ndarray], float],
        task: Task,
    ) -> None:
        """`inputs` (n, …) are the validation split, `score` of outputs for them 1 where they are right."""
        self._format, self._quantized = format, quantized
        self._inputs, self._score, self._task = inputs, score, task
        self.order: tuple[str, ...] = quantized.layers
        self.known: dict[int, TradeOff] = {}

    def accuracy(self, path: Path) -> float:
        """Of a file on the validation split."""
        return self._score(logits(self._format, path, self._inputs))

    def at(self, reverted: int) -> TradeOff:
        """With so many layers in float32, the most sensitive first; evaluated once."""
        if reverted not in self.known:
            with TemporaryDirectory(prefix="edgekd-accuracy-") as folder:
                path = Path(folder, f"model{SUFFIX[self._format]}")
                files = self._quantized.write(path, self.order[:reverted])
                size = sum(file.stat().st_size for file in files)
                self.known[reverted] = TradeOff(
                    reverted=reverted, accuracy=self.accuracy(path), size=size
                )
            self._task.advance(evaluated=len(self.known))
        return self.known[reverted]


def fewest_reverted(
    offs: TradeOffs,
    least: float,
    most_evaluations: int,
    rank: Callable[[], tuple[LayerSensitivity, ...]],
    *,
    where: Path,
) -> tuple[int, tuple[LayerSensitivity, ...]]:
    """How many layers have to be in float32 for an accuracy of `least`, and the order they go in.

    By bisection, which evaluates the file at most `most_evaluations` times; `rank` is only asked
    when not every layer can be quantized. Accuracy need not rise with every layer: what is returned
    was itself evaluated, though fewer may do. Raises StageError when it does not hold with any
    layer in INT8.
    """
    if offs.at(0).accuracy >= least:
        return 0, ()
    ranked = rank()
    offs.order = tuple(sensitivity.layer for sensitivity in ranked)
    # `low` does not hold. With all layers in float32 it does, but that is no INT8 file.
    low, high = 0, len(ranked)
    while high - low > 1 and len(offs.known) < most_evaluations:
        middle = (low + high) // 2
        if offs.at(middle).accuracy >= least:
            high = middle
        else:
            low = middle
    if high == len(ranked):
        best = max(offs.known.values(), key=lambda off: off.accuracy)
        if low < high - 1:
            why = f"after {most_evaluations} evaluations (quantize.max_evaluations)"
        else:
            why = "even with a single layer in INT8"
        raise StageError(
            f"accuracy on the validation split stays below the {least:.2%} that quantize.max_drop "
            f"asks for, {why}: the best was {best.accuracy:.2%} with {best.reverted} of "
            f"{len(ranked)} layers in float32",
            where=str(where),
            fix="allow a larger quantize.max_drop, choose another quantize.recipe, or deploy float32",
        )
    return high, ranked
