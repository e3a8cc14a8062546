"""One figure of one run, as the history keeps it, and the series that it is a point of."""

from __future__ import annotations

import datetime
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, field_validator

from edgekd.artifacts import sha256_json
from edgekd.config.schema import DIMENSIONS, HIGHER_IS_BETTER, dimension
from edgekd.config.units import Dimension
from edgekd.results import Interval, Provenance, Record, Variant, Verdict

# No control or formatting characters: what is kept is printed on terminals and in pages later.
_PRINTABLE = r"^[^\p{C}]+$"
LONGEST_TEXT = 200
Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT, pattern=_PRINTABLE)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


def _utc_second(value: datetime.datetime) -> datetime.datetime:
    try:
        return value.astimezone(datetime.UTC).replace(microsecond=0)
    except OverflowError:
        raise ValueError("is not a date that exists in UTC") from None


Time = Annotated[AwareDatetime, AfterValidator(_utc_second)]


class Key(NamedTuple):
    """What the points of one series have in common: only then do they compare."""

    run: str
    target: str | None
    device: str | None
    runtime: str
    precision: str | None
    threads: int | None
    batch_size: int | None
    variant: Variant
    metric: str
    label: str | None
    provenance: Provenance

    @property
    def place(self) -> str:
        """Such as "local/onnxruntime/f32"; accuracies belong to no target."""
        return "/".join(part for part in (self.target, self.runtime, self.variant) if part)

    @property
    def dimension(self) -> Dimension:
        """The unit that values are in; "number" for a metric of the user's, or of another version."""
        return dimension(self.metric)

    @property
    def higher_is_better(self) -> bool | None:
        """Of accuracies, rates and gains; of times, sizes and errors less is; None: edgekd can't know.

        That is so of the metrics of the user's function.
        """
        return self.metric in HIGHER_IS_BETTER if self.metric in DIMENSIONS else None

    @property
    def figure(self) -> str:
        """Such as "latency_p50", or "class_recall of 'cat'"."""
        return f"{self.metric} of {self.label!r}" if self.label is not None else self.metric


class Entry(Record):
    """A figure in base units (seconds, bytes, shares) with all that is known of where it is from.

    `time` is when it was measured (UTC, whole seconds), `run` the run's name, `commit` what the
    user's project was at when the gate ran; `config` hashes the configuration without budgets,
    `artifact` the student's file (of one with several parts: their hashes). `interval` is the 95 %
    interval (99 % for latency_vs_baseline); `label` is the class that it is of; a `noisy` one
    was measured on a disturbed machine. `limit` and `verdict` are of the budgets on it, if any.
    """

    time: Time
    run: Text
    commit: Commit | None
    dirty: bool | None
    branch: Text | None
    config: Digest
    artifact: Digest | None
    target: Text | None
    device: Text | None
    runtime: Text
    runtime_version: Text | None
    precision: Text | None
    threads: Count | None
    batch_size: Count | None
    variant: Variant
    metric: Text
    label: Text | None
    value: float
    interval: Interval | None
    provenance: Provenance
    noisy: bool
    limit: Text | None
    verdict: Verdict | None
    edgekd: Text

    @field_validator("interval")
    @classmethod
    def _ordered(cls, value: Interval | None) -> Interval | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the lower end is above the upper one")
        return value

    @property
    def key(self) -> Key:
        """The series that it is a point of."""
        return Key(*(getattr(self, name) for name in Key._fields))

    @property
    def point(self) -> str:
        """Names the measurement. A gate that runs again on it makes no other, whatever the commit."""
        fields = {*Key._fields, "time", "value", "interval", "artifact", "config"}
        return sha256_json(self.model_dump(mode="json", include=fields))

    @property
    def identity(self) -> str:
        """Names the measurement with its verdict: the same one is kept once."""
        return sha256_json([self.point, self.limit, self.verdict])

    @property
    def revision(self) -> str:
        """The short commit, with a + for uncommitted changes; "–" outside a repository."""
        return "–" if self.commit is None else self.commit[:10] + ("+" if self.dirty else "")


def printable(text: object, length: int = LONGEST_TEXT) -> str | None:
    """What a device, a repository or a configuration says, as an Entry can hold it."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return plain[:length].rstrip() or None
