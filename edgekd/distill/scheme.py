"""What a scheme is: who learns from whom. Each lives in its own file under `schemes/`.

A scheme trains as many models as it likes with the one loop, and ends with one student. This module
and the scheme files import no torch at load time: a configuration is checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from edgekd.distill.entry import parse_entry
from edgekd.distill.method import Kind, working
from edgekd.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from edgekd.config.schema import Config, Distill, Model, Weighted
    from edgekd.data.resolve import Dataset
    from edgekd.distill.workshop import Workshop


class Scheme(BaseModel):
    """Fields are its parameters, with the paper's defaults where it gives any."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: ClassVar[str]
    # What the student's last teacher gives in this scheme; None: what the run's teacher gives.
    gives: ClassVar[frozenset[Kind] | None] = None
    # What the keys of `distill` are that the user leaves out.
    defaults: ClassVar[dict[str, Any]] = {}
    # Whether it has losses of its own that need no label.
    teaches: ClassVar[bool] = False
    # Whether networks are trained with the settings of `teacher.train`.
    trains_teachers: ClassVar[bool] = False

    def needs_network(self, teacher: Weighted) -> bool:
        """Whether the run's teacher has to be a network, which others are trained like."""
        return False

    def networks(self) -> dict[str, Model]:
        """Networks of its own, besides teacher and student, by their key: its result depends on them."""
        return {}

    def lessons(self, config: Config) -> list[tuple[Model, Model]]:
        """Who teaches whom by the configured methods, where these look inside of both: once each."""
        return [(config.teacher, config.student)]

    def check_data(self, student: nn.Module, dataset: Dataset) -> None:
        """Raises UsageError for settings that do not go with this data, or the untrained `student`."""

    def check(self, distill: Distill) -> None:
        """Raises ValueError for settings that do not go together with it."""
        if self.gives is None:
            return
        if not distill.methods.entries and not self.teaches:
            raise ValueError(
                f"in scheme {self.name} the student learns by methods, and methods is empty"
            )
        for method in distill.methods.entries:
            missing = method.needs - self.gives
            if missing:
                raise ValueError(
                    f"{method.name} needs {' and '.join(sorted(missing))}, and in scheme {self.name} "
                    f"the teacher gives {', '.join(sorted(self.gives))}; methods that work with it: "
                    f"{', '.join(working(self.gives))}"
                )

    def train(self, workshop: Workshop) -> None:
        """Train the student, from wherever an earlier attempt was cut short, into the stage's folder."""
        raise NotImplementedError


def named(value: Any) -> Any:
    """A list of networks as it is written, in which a text is the `model` of one."""
    if not isinstance(value, list):
        return value
    return [{"model": entry} if isinstance(entry, str) else entry for entry in value]


def number_or_named(value: Any) -> Any:
    """The same, where a number of networks will do. Raises ValueError for one that is in no list."""
    if isinstance(value, str | dict):
        raise ValueError("should be a number, or a list of networks")
    return named(value)


SCHEMES: Registry[type[Scheme]] = Registry("scheme", "edgekd.distill.schemes")
ANSWERS: frozenset[Kind] = frozenset({"logits", "probabilities", "labels"})
S = TypeVar("S", bound=type[Scheme])


def scheme(name: str) -> Callable[[S], S]:
    """Class decorator: register a Scheme as `name`."""

    def decorate(cls: S) -> S:
        cls.name = name
        SCHEMES.register(name)(cls)
        return cls

    return decorate


@dataclass(frozen=True)
class SchemeChoice:
    """`distill.scheme` of the configuration: `name` or `{name: {parameters}}`."""

    entry: Scheme

    @classmethod
    def default(cls) -> SchemeChoice:
        """A fixed teacher."""
        return cls(SCHEMES.get("offline")())

    @classmethod
    def parse(cls, value: object) -> SchemeChoice:
        """Build from plain data. Raises PydanticCustomError saying which key is wrong."""
        return value if isinstance(value, SchemeChoice) else cls(parse_entry(SCHEMES, value))

    def dump(self) -> dict[str, Any]:
        """Plain data that `parse` reads back."""
        return {self.entry.name: self.entry.model_dump(mode="json")}

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.dump)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> Any:
        entries: list[dict[str, Any]] = [{"enum": SCHEMES.names()}]
        for name in SCHEMES.names():
            entries.append(
                {
                    "type": "object",
                    "properties": {name: _whole(SCHEMES.get(name).model_json_schema())},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
        return {"anyOf": entries}


def _whole(schema: dict[str, Any]) -> Any:
    """A JSON schema with what it refers to in its place, to stand inside another."""
    definitions = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolve(definitions[value["$ref"].rpartition("/")[2]])
        return {key: resolve(item) for key, item in value.items()}

    return resolve(schema)
