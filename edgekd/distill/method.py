"""What a distillation method is. Each lives in its own file under `methods/`, registered by `@method`.

This module and the method files import no torch at load time: a configuration is checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from edgekd.distill.entry import parse_entry, problem
from edgekd.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

ALONE = "First epochs that this term has for itself, as an initialisation; then it is done. 0: always on."
Kind = Literal["logits", "probabilities", "labels", "features"]


@dataclass(frozen=True)
class Knowledge:
    """What a model says about one batch of n samples. Only what a method `needs` is filled in.

    Of other tasks than classification `logits` are its outputs (n, …), and `population` those labels of
    the training split that are numbers (samples, outputs).

    `logits`: (n, classes), unnormalised. `features`: tap name → tensor with n rows. With the teacher's
    go the `indices` (n,) of the samples, the classes of all there are, `population` (samples,), and of
    texts which of their places are tokens and not padding, `mask` (n, tokens) bool.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None
    population: Tensor | None = None
    mask: Tensor | None = None

    def float(self) -> Knowledge:
        """Everything in float32, as losses are computed; nothing is copied that already is."""
        features = {tap: value.float() for tap, value in self.features.items()}
        return replace(self, logits=self.logits.float(), features=features)


class Method(BaseModel):
    """One distillation loss. Fields are its hyper-parameters, with the paper's defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: ClassVar[str]
    needs: ClassVar[frozenset[Kind]]
    # Whether it looks at the labels, so that it has nothing to say of samples without one.
    labelled: ClassVar[bool] = False
    # Whether processes that each see a share of every batch can compute it together.
    divisible: ClassVar[bool] = True
    # Whether it is of normalised features, so that its gradient is large while the student's are small: in
    # ten steps it falls to a tenth or less (at: a hundredth).
    settles: ClassVar[bool] = False
    # Whether it holds where outputs are numbers, not logits.
    numbers: ClassVar[bool] = False
    # Whether it holds where outputs are maps, logits (n, classes, height, width).
    dense: ClassVar[bool] = False
    # Whether it needs maps.
    maps: ClassVar[bool] = False
    # The weight of the labels beside it: small where soft targets say what they say, and more.
    labels_weight: ClassVar[float] = 0.1
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    warmup: int = Field(0, ge=0, description="Epochs over which the weight rises linearly.")
    alone: int = Field(0, ge=0, description=ALONE)

    def __call__(self, student: Knowledge, teacher: Knowledge, labels: Tensor) -> Tensor:
        """The scalar loss, mean over the batch, before `weight`."""
        raise NotImplementedError

    @property
    def every_logit(self) -> bool:
        """Whether small logits matter to it as large ones do, so that the store must keep them all."""
        return False

    @property
    def persists(self) -> bool:
        """Whether it goes on after the epochs that it was `alone`."""
        return self.alone == 0

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        """What computes the loss, made once with the shapes of one batch of both.

        An nn.Module where the loss has parameters of its own: they are trained with the student,
        are in its checkpoint, and are never exported.
        """
        return self


def needing_every_logit(methods: Iterable[Method]) -> str | None:
    """The first of them that does, by name."""
    return next((method.name for method in methods if method.every_logit), None)


# (student, teacher, labels) -> scalar loss
Loss = Callable[["Knowledge", "Knowledge", "Tensor"], "Tensor"]
Pair = tuple[str, str]


class FeatureMethod(Method):
    """A method that looks inside both models, at pairs of taps (see `taps.py`)."""

    # What is tapped when nothing is given: the map that ends every spatial stage, the last of
    # them, the vector that enters the last linear layer, or what `pair_blocks` makes of transformers'.
    place: ClassVar[Literal["stages", "last stage", "penultimate", "blocks"]]
    labels_weight: ClassVar[float] = 1.0
    # Of how many stages it needs maps (n, c, h, w) at least; 0: it takes what passes the taps.
    least: ClassVar[int] = 0
    taps: list[Pair] | None = Field(
        None, description="[[teacher tap, student tap], …]; null: found automatically."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_pair(cls, value: Any) -> Any:
        """`tap: [teacher, student]` for a single pair; lists for pairs, as YAML has them."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "tap" in value:
            if "taps" in value:
                raise ValueError("give tap or taps, not both")
            pair = value.pop("tap")
            if not (isinstance(pair, list | tuple) and len(pair) == 2):
                raise ValueError(f"tap should be [teacher tap, student tap], not {pair!r}")
            value["taps"] = [pair]
        if value.get("taps") == []:
            raise ValueError("taps has no pair: leave it out, and they are found automatically")
        if isinstance(value.get("taps"), list):
            if not all(isinstance(p, list | tuple) and len(p) == 2 for p in value["taps"]):
                raise ValueError(
                    "taps should be pairs, [[teacher tap, student tap], …]; of one pair, tap: [teacher tap, "
                    "student tap]"
                )
            value["taps"] = [tuple(p) if isinstance(p, list) else p for p in value["taps"]]
        return value

    def build(self, student: Knowledge, teacher: Knowledge) -> Loss:
        """Raises UsageError for features that it cannot compare."""
        from edgekd.distill.regressors import check_maps

        if self.least:
            check_maps(self.pairs(student, teacher), self.name, self.least)
        return self

    def pair_blocks(self, teacher: dict[str, str], student: dict[str, str]) -> list[Pair]:
        """Taps for a `place` of "blocks": both are blocks' paths, first to last, and their outputs' taps."""
        raise NotImplementedError

    def pairs(self, student: Knowledge, teacher: Knowledge) -> list[tuple[Tensor, Tensor]]:
        """(student's features, teacher's features) of every pair of taps; tokens as maps."""
        from edgekd.distill.regressors import as_map

        assert self.taps is not None
        found = [(student.features[s], teacher.features[t]) for t, s in self.taps]
        if self.place in ("penultimate", "blocks"):
            return found
        return [(as_map(s), as_map(t)) for s, t in found]


METHODS: Registry[type[Method]] = Registry("method", "edgekd.distill.methods")
M = TypeVar("M", bound=type[Method])


def method(name: str, *, needs: set[Kind]) -> Callable[[M], M]:
    """Class decorator: register a Method as `name`; `needs` is the knowledge it asks of the teacher."""

    def decorate(cls: M) -> M:
        cls.name, cls.needs = name, frozenset(needs)
        METHODS.register(name)(cls)
        return cls

    return decorate


def working(provides: frozenset[Kind]) -> list[str]:
    """The methods of classification that need nothing more than this knowledge."""
    known = {name: METHODS.get(name) for name in METHODS.names()}
    return [name for name, entry in known.items() if entry.needs <= provides and not entry.maps]


@dataclass(frozen=True)
class MethodList:
    """`distill.methods` of the configuration: a list of `name` or `{name: {parameters}}`, or "auto".

    Of `auto` the `entries` are kd's, which needs no less than what is suggested when the data is known
    (`suggest.py`).
    """

    entries: tuple[Method, ...]
    auto: bool = False

    @classmethod
    def default(cls) -> MethodList:
        """What goes with the data."""
        return cls((METHODS.get("kd")(),), auto=True)

    @classmethod
    def parse(cls, value: object) -> MethodList:
        """Build from plain data. Raises PydanticCustomError saying which entry is wrong."""
        if isinstance(value, MethodList):
            return value
        if value == "auto":
            return cls.default()
        if not isinstance(value, list):
            text = "should be auto, or a list such as [{kd: {temperature: 4}}]"
            if isinstance(value, dict) and "0" in value:
                text += "; no list is there yet that 0 could be the first of: set the whole of it"
            raise problem(text)
        entries = tuple(
            entry if isinstance(entry, Method) else parse_entry(METHODS, entry, i)
            for i, entry in enumerate(value)
        )
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise problem(f"method {name!r} is listed twice")
        return cls(entries)

    def dump(self) -> list[dict[str, Any]] | str:
        """Plain data that `parse` reads back."""
        if self.auto:
            return "auto"
        return [{entry.name: entry.model_dump()} for entry in self.entries]

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.dump)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> Any:
        entries: list[dict[str, Any]] = [{"enum": METHODS.names()}]
        for name in METHODS.names():
            parameters = METHODS.get(name).model_json_schema()
            entries.append(
                {
                    "type": "object",
                    "properties": {name: parameters},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
        return {"anyOf": [{"const": "auto"}, {"type": "array", "items": {"anyOf": entries}}]}
