"""`name` or `{name: {parameters}}` in the configuration, as what is registered under that name."""

from __future__ import annotations

import re
import reprlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from edgekd.errors import UsageError
from edgekd.registry import Registry, suggestion

# How pydantic names one of several kinds that a value may be of, in the place of what is wrong.
KIND = re.compile(r"(list|dict|literal)\[.*\]$|constrained-\w+$|(int|float|bool|str)$")
B = TypeVar("B", bound=BaseModel)


def parse_entry(registry: Registry[type[B]], entry: object, *path: str | int) -> B:
    """The entry at `path` of the field that is read. Raises PydanticCustomError at the wrong key."""
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise problem("should be a name or one {name: {parameters}}", *path)
    ((name, parameters),) = entry.items()
    try:
        cls = registry.get(str(name))
        return cls.model_validate({} if parameters is None else parameters)
    except UsageError as error:
        raise problem(error.what, *path) from None
    except ValidationError as error:
        # Of the kinds that a value may be of, that which it resembles most: its mistake lies deepest.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        text = f"{text[0].lower()}{text[1:]}"
        if first["type"] == "extra_forbidden":
            of_entry = len(first["loc"]) == 1
            text = "unknown key"
            text += suggestion(str(first["loc"][-1]), cls.model_fields) if of_entry else ""
        elif first["type"] == "missing":
            text = "this key is required"
        elif first["type"] != "value_error":
            text += f", not {reprlib.repr(first['input'])}"
        found = [key for key in first["loc"] if not KIND.match(str(key))]
        raise problem(text, *path, str(name), *found) from None


def problem(text: str, *path: str | int) -> PydanticCustomError:
    """An error at `path` below the field that is read."""
    return PydanticCustomError("methods", "{text}", {"text": text, "path": path})
