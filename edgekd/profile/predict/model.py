"""A cost model of one runtime on one device: operators first, then what their sum got wrong.

1. The measured latency of every network is shared out among its operators, as the profiler saw them:
   what the profiler itself costs, and what the runtime spends between operators, is in the shares.
   Extra-trees (Geurts 2006) learn the logarithm of a share over the operator's roofline time.
2. A network's latency is the sum of its operators' shares times (1 + error), where the error is a
   Gaussian process over operators, plus seconds per inference and per operator of a type. Only sums
   are observed; they are linear in all of it, so that the posterior is exact (Rasmussen and Williams 2006,
   §2.2 and §2.7).
3. Intervals are conformal: both steps are fitted again without each fold of networks, and the 95 %
   quantile of the errors on the left-out ones, in units of the process's own deviation, is the half-width
   (Vovk 2005; Lei 2018, §5.2: locally weighted; folds as in Barber 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.profile.predict.features import family, vector, work
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
# Prior deviations: share of an operator's time by type and by geometry; seconds per operator of a
# type and per inference; share of a latency that is noise.
_BY_TYPE, _BY_SHAPE, _PER_OPERATOR, _PER_CALL, _NOISE = 0.1, 0.12, 0.4e-6, 4e-6, 0.03
_LENGTH = 3.0
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
        kinds = sorted({s.type for o in observations for s in o.steps})
        self._types = {name: i for i, name in enumerate(kinds)}
        features = [self._features(o.steps) for o in observations]
        every = np.concatenate(features)
        self._mean, self._deviation = every.mean(0), every.std(0) + 1e-9
        self._trees: ExtraTreesRegressor = ExtraTreesRegressor(
            _TREES, min_samples_leaf=2, max_features=0.6, random_state=0
        )
        roofs = np.exp(every[:, 0])
        target = np.log(np.concatenate(shares(observations)) / (roofs + _SHORT))
        self._trees.fit(self._inputs(every, [s for o in observations for s in o.steps]), target)
        self._fit_process(observations)
        return self

    def predict(self, steps: Sequence[Step]) -> Estimate:
        """Of one inference that executes these operators."""
        base, seconds, deviation = self._posterior(steps)
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
        _, seconds, deviation = self._posterior(observation.steps)
        return abs(math.log(observation.seconds / seconds)) / deviation

    def _posterior(self, steps: Sequence[Step]) -> tuple[np.ndarray, float, float]:
        """The operators' shares, the latency, and the deviation of its logarithm."""
        base = self._base(steps)
        rows = self._rows(steps, base)
        one = np.zeros(len(steps), int)
        with_known = _covariance(rows, one, 1, self._known, self._owner, len(self._alpha))[0]
        own = float(_covariance(rows, one, 1, rows, one, 1)[0, 0])
        total = float(base.sum())
        # A correction beyond a factor of 3 is no correction.
        seconds = min(max(total + float(with_known @ self._alpha), total / 3), total * 3)
        variance = max(own - float(with_known @ self._inverse @ with_known), 0.0)
        return base, seconds, math.sqrt(variance / seconds**2 + _NOISE**2)

    @property
    def factor(self) -> float:
        """Deviations to each side of the interval."""
        n = len(self.scores)
        rank = math.ceil(LEVEL * (n + 1))
        # Too few to bound 95 %: the largest, half as much again.
        return float(self.scores[rank - 1]) if 0 < rank <= n else 1.5 * max(self.scores, default=4)

    def _features(self, steps: Sequence[Step]) -> np.ndarray:
        return np.stack([vector(step, self.peaks, self.precision) for step in steps])

    def _inputs(self, features: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
        hot = np.zeros((len(steps), len(self._families)))
        for i, step in enumerate(steps):
            position = self._families.get(family(step))
            if position is not None:
                hot[i, position] = 1
        return np.hstack([features, hot])

    def _base(self, steps: Sequence[Step]) -> np.ndarray:
        features = self._features(steps)
        logs = self._trees.predict(self._inputs(features, steps))
        base: np.ndarray = np.exp(logs) * (np.exp(features[:, 0]) + _SHORT)
        return base

    def _rows(self, steps: Sequence[Step], base: np.ndarray) -> _Rows:
        scaled = (self._features(steps) - self._mean) / self._deviation
        # Types that the suite does not have are like none of it.
        types = [self._types.get(step.type, -1 - i) for i, step in enumerate(steps)]
        return scaled, np.array(types), base

    def _fit_process(self, observations: Sequence[Observation]) -> None:
        steps = [step for o in observations for step in o.steps]
        base = self._base(steps)
        self._known = self._rows(steps, base)
        n = len(observations)
        self._owner = np.repeat(np.arange(n), [len(o.steps) for o in observations])
        measured = np.array([o.seconds for o in observations])
        residual = measured - np.bincount(self._owner, base, n)
        gram = _covariance(self._known, self._owner, n, self._known, self._owner, n)
        self._inverse = np.linalg.inv(gram + np.diag((_NOISE * measured) ** 2))
        self._alpha = self._inverse @ residual


# Of operators: scaled features (n, f), type (n,), share of the latency in seconds (n,).
_Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _covariance(
    a: _Rows, owner_a: np.ndarray, n: int, b: _Rows, owner_b: np.ndarray, m: int
) -> np.ndarray:
    """Of the errors of `n` networks with those of `m`, in seconds², from their operators."""
    (x, types_a, share_a), (y, types_b, share_b) = a, b
    distance = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    near = np.exp(-np.maximum(distance, 0) / (2 * _LENGTH**2))
    each = np.outer(share_a, share_b) * (_BY_TYPE**2 + _BY_SHAPE**2 * near) + _PER_OPERATOR**2
    each *= types_a[:, None] == types_b[None]
    by_a = np.zeros((n, len(x)))
    by_a[owner_a, np.arange(len(x))] = 1
    by_b = np.zeros((len(y), m))
    by_b[np.arange(len(y)), owner_b] = 1
    total: np.ndarray = by_a @ each @ by_b + _PER_CALL**2
    return total


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


def shares(observations: Sequence[Observation]) -> list[np.ndarray]:
    """Every network's latency shared out among its operators, in seconds, all above 0.

    To what the profiler said come constants that fit all networks best: one for operators that it
    timed (less than 0 where the profiler costs more than it leaves out), one for those it did not.
    What then lacks goes to each operator by how far its time may be off: half a microsecond and a tenth.
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
    once_timed, once_untimed, _ = found.x
    result = []
    for s, t, total in zip(said, timed, latency, strict=True):
        first = np.where(t, np.maximum(s + once_timed, 0.1 * s), once_untimed)
        first = np.maximum(first, _LEAST)
        doubt = _SHORT**2 + (0.1 * first) ** 2
        moved = first + (total - first.sum()) * doubt / doubt.sum()
        moved = np.maximum(moved, 0.2 * first)
        result.append(moved * total / moved.sum())
    return result
