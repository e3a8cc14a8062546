"""What a search hands around and leaves in `search.json`: costs, trials, points, and what it found.

Latencies in seconds, sizes and memory in bytes, accuracies in [0, 1] on the validation split.
"""

from __future__ import annotations

from typing import Any, Literal

from edgekd.results import Accuracy, Interval, Provenance, Record, Variant


class Candidate(Record):
    """A network that could be the student; `name` is for people, `family` what it is scaled from."""

    name: str
    model: str
    args: dict[str, Any]
    family: str
    parameters: int


class Cost(Record):
    """One figure of an untrained file in one runtime on one target."""

    metric: str
    value: float
    interval: Interval | None = None
    target: str
    runtime: str
    variant: Variant
    provenance: Provenance = "measured"
    noisy: bool = False


class Costs(Record):
    """All figures of a candidate's files; empty where they did not run on the target, and why."""

    figures: tuple[Cost, ...]
    failed: str | None = None


class Standing(Record):
    """One budget held against what is known of a student: `limit` in base units, `sign` ≤ or ≥.

    `beyond` is how many times the limit is missed (1 or less: it holds); of accuracies, by how many
    shares. `verdict` is inconclusive where the limit lies in the interval.
    """

    budget: str
    place: str
    value: float | None
    limit: float
    beyond: float
    verdict: Literal["pass", "fail", "inconclusive"]
    text: str

    @property
    def holds(self) -> bool:
        """By the value, whatever the interval."""
        return self.beyond <= 1


class Rung(Record):
    """A trial after so many epochs: accuracy and agreement with the teacher, by precision."""

    epochs: int
    accuracy: dict[Variant, Accuracy]
    agreement: dict[Variant, float]
    seconds: float


class Trial(Record):
    """A candidate with a method. `id` is the key of its distillation, which names its folder."""

    id: str
    candidate: str
    method: str
    rungs: tuple[Rung, ...] = ()
    error: str | None = None


class Point(Record):
    """A trial in one precision: what a front is of. `front` are the costs in which nothing beats it."""

    trial: str
    candidate: str
    family: str
    method: str
    variant: Variant
    epochs: int
    parameters: int
    accuracy: Accuracy
    costs: dict[str, float]
    provenance: Provenance
    latency_interval: Interval | None
    standings: tuple[Standing, ...]
    front: tuple[str, ...] = ()

    @property
    def meets(self) -> bool:
        """Whether every budget holds by its value."""
        return all(standing.holds for standing in self.standings)


class Closest(Record):
    """Of candidates of which none can meet the budgets on cost the one that misses least; not trained."""

    candidate: str
    method: str
    variant: Variant
    standings: tuple[Standing, ...]


class SearchReport(Record):
    """`search.json`. `winner` is the index of its point; `left` are budgets that only the gate can judge.

    `closest` is there instead where the budgets on cost are out of reach, and so nothing was trained.
    """

    name: str
    teacher: Accuracy | None
    place: str
    epochs: int
    rungs: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    costed_out: dict[str, str]
    trials: tuple[Trial, ...]
    points: tuple[Point, ...]
    winner: int | None
    left: tuple[str, ...]
    notes: tuple[str, ...]
    best: str | None
    closest: Closest | None = None

    @property
    def best_point(self) -> Point | None:
        """The winner, or the closest."""
        return None if self.winner is None else self.points[self.winner]

    @property
    def found(self) -> bool:
        """Whether the winner meets every budget."""
        return self.best_point is not None and self.best_point.meets
