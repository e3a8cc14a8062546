"""A cost model of one runtime on one device: seconds of an operator from its shapes.

1. The measured latency of every network is shared out among its operators, as the profiler saw them:
   what the profiler itself costs, and what the runtime spends between operators, is in the shares.
2. Extra-trees (Geurts 2006) learn the logarithm of a share over the operator's roofline time. A network
   takes the sum of its operators, and what the runtime spends once per inference.
3. Intervals are conformal: the model is fitted again without each fold of networks, and the 95 %
   quantile of the errors on the left-out ones, in units of the trees' own disagreement, is the half-width
   (Vovk 2005; Lei 2018, §5.2: locally weighted; folds as in Barber 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.profile.predict.features import family, matrix
from edgekd.profile.predict.records import Calibration, Observation, Peaks
from edgekd.profile.predict.steps import Step

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

LEVEL = 0.95
_FOLDS = 10
_TREES = 60
# A profiler that counts whole microseconds shows a shorter operator as 0; half a microsecond then.
_SHORT = 0.5e-6
_LEAST = 0.1e-6
# What a profiler may add to an operator.
_PROFILER = 3e-6
# Trees that agree may all be wrong: the least deviation of a logarithm.
_FLOOR = 0.05
# An operator whose type the suite does not have may take so many times more, or less.
_UNKNOWN = 4.0


@dataclass(frozen=True)
class Estimate:
    """Seconds of one inference with the interval, and of each operator.

    `unknown` are the operators of types that the cost model has not seen.
    """

    seconds: float
    interval: tuple[float, float]
    steps: tuple[float, ...]
    unknown: tuple[str, ...]


class RuntimeModel:
    """Fitted to the observations of one runtime; `scores` are those of the left-out folds."""

    def __init__(self, peaks: Peaks, precision: str, scores: Sequence[float] = ()) -> None:
        self.peaks, self.precision = peaks, precision
        self.scores = np.sort(np.asarray(scores, float))

    @classmethod
    def of(cls, calibration: Calibration, runtime: str) -> RuntimeModel:
        """The model of a calibration for a runtime that it has."""
        scores = calibration.scores.get(runtime, ())
        model = cls(calibration.rooflines[runtime], calibration.precision, scores)
        return model.fit([o for o in calibration.observations if o.runtime == runtime])

    def fit(self, observations: Sequence[Observation]) -> RuntimeModel:
        """Both steps. The same observations give the same model."""
        from sklearn.ensemble import ExtraTreesRegressor

        self._families = {
            name: i for i, name in enumerate(sorted({family(s) for o in observations for s in o.steps}))
        }  # fmt: skip
        every = np.concatenate([self._features(o.steps) for o in observations])
        steps = [s for o in observations for s in o.steps]
        self._trees: ExtraTreesRegressor = ExtraTreesRegressor(
            _TREES, min_samples_leaf=2, max_features=0.6, random_state=0
        )
        parts, self._call = shares(observations)
        target = np.log(np.concatenate(parts) / (np.exp(every[:, 0]) + _SHORT))
        self._trees.fit(self._inputs(every, steps), target, sample_weight=_trust(observations))
        return self

    def predict(self, steps: Sequence[Step]) -> Estimate:
        """Of one inference that executes these operators."""
        base, seconds, deviation = self._spread(steps)
        new = np.array([family(step) not in self._families for step in steps])
        unsure = float(base[new].sum())
        width = math.exp(self.factor * deviation)
        low = seconds / width - unsure * (1 - 1 / _UNKNOWN)
        high = seconds * width + unsure * (_UNKNOWN - 1)
        return Estimate(
            seconds,
            (max(low, 0.01 * seconds), high),
            tuple((base * seconds / base.sum()).tolist()),
            tuple(dict.fromkeys(family(s) for s, is_new in zip(steps, new, strict=True) if is_new)),
        )

    def score(self, observation: Observation) -> float:
        """How far off the prediction is, in deviations of the logarithm."""
        _, seconds, deviation = self._spread(observation.steps)
        return abs(math.log(observation.seconds / seconds)) / deviation

    def _spread(self, steps: Sequence[Step]) -> tuple[np.ndarray, float, float]:
        """The operators' seconds, the latency, and the deviation of its logarithm over the trees."""
        features = self._features(steps)
        inputs = self._inputs(features, steps)
        scale = np.exp(features[:, 0]) + _SHORT
        logs = np.stack([tree.predict(inputs) for tree in self._trees.estimators_])
        base = np.exp(logs.mean(0)) * scale
        totals = np.log((np.exp(logs) * scale).sum(1) + self._call)
        return base, float(base.sum()) + self._call, math.hypot(float(totals.std()), _FLOOR)

    @property
    def factor(self) -> float:
        """Deviations to each side of the interval."""
        n = len(self.scores)
        rank = math.ceil(LEVEL * (n + 1))
        # Too few to bound 95 %: the largest, half as much again.
        return float(self.scores[rank - 1]) if 0 < rank <= n else 1.5 * max(self.scores, default=4)

    def _features(self, steps: Sequence[Step]) -> np.ndarray:
        return matrix(steps, self.peaks, self.precision)

    def _inputs(self, features: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
        hot = np.zeros((len(steps), len(self._families)))
        for i, step in enumerate(steps):
            position = self._families.get(family(step))
            if position is not None:
                hot[i, position] = 1
        return np.hstack([features, hot])


def scored(calibration: Calibration) -> Calibration:
    """The calibration with the errors that its models make on networks left out of the fit."""
    scores = {}
    for runtime, peaks in calibration.rooflines.items():
        mine = [o for o in calibration.observations if o.runtime == runtime]
        order = np.random.default_rng(0).permutation(len(mine))
        folds = [set(order[i::_FOLDS].tolist()) for i in range(min(_FOLDS, len(mine)))]
        found = []
        for fold in folds if len(mine) > 1 else []:
            rest = [o for i, o in enumerate(mine) if i not in fold]
            model = RuntimeModel(peaks, calibration.precision).fit(rest)
            found += [model.score(mine[i]) for i in fold]
        scores[runtime] = tuple(sorted(found))
    return calibration.model_copy(update={"scores": scores})


def _trust(observations: Sequence[Observation]) -> np.ndarray:
    """Weights of operators: little where the profiler was disturbed, so that it saw far too much."""
    weights = []
    for o in observations:
        said = sum(s.seconds or 0.0 for s in o.steps) - _PROFILER * len(o.steps)
        weights += [min(1.0, o.seconds / max(said, 1e-9)) ** 2] * len(o.steps)
    return np.array(weights)


def shares(observations: Sequence[Observation]) -> tuple[list[np.ndarray], float]:
    """Every network's latency shared out among its operators, in seconds, all above 0, and what
    is spent once per inference.

    To what the profiler said come constants that fit all networks best: one for operators that it
    timed (less than 0 where the profiler costs more than it leaves out), one for those it did not.
    What then lacks, or is too much, is spread in proportion: so do others that take the processor.
    """
    from scipy.optimize import lsq_linear

    timed = [np.array([s.seconds is not None for s in o.steps]) for o in observations]
    said = [np.array([s.seconds or 0.0 for s in o.steps]) for o in observations]
    latency = np.array([o.seconds for o in observations])
    counts = np.array([[t.sum(), (~t).sum(), 1] for t in timed], float)
    lacking = latency - np.array([s.sum() for s in said])
    limits = ([-1e-5, 0, 0], [1e-4, 1e-4, 1e-4])
    # By turns with weights, so that networks that were disturbed count little (Huber 1964).
    weights = 1 / latency
    for _ in range(10):
        found = lsq_linear(counts * weights[:, None], lacking * weights, limits)
        off = np.abs(lacking - counts @ found.x) / latency
        weights = np.minimum(1, 0.05 / np.maximum(off, 1e-9)) / latency
    once_timed, once_untimed, call = found.x
    result = []
    for s, t, total in zip(said, timed, latency, strict=True):
        first = np.where(t, np.maximum(s + once_timed, 0.1 * s), once_untimed)
        first = np.maximum(first, _LEAST)
        result.append(first * (total - min(call, 0.3 * total)) / first.sum())
    return result, float(call)
