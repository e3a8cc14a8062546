"""`name` or `{name: {parameters}}` in the configuration, as what is registered under that name."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from edgekd.config.problems import describe, problems, shortened
from edgekd.errors import UsageError
from edgekd.registry import Registry

B = TypeVar("B", bound=BaseModel)


def parse_entry(registry: Registry[type[B]], entry: object, *path: str | int) -> B:
    """The entry at `path` of the field that is read. Raises PydanticCustomError at the wrong key."""
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        text = "should be a name or one {name: {parameters}}"
        if isinstance(entry, dict) and entry:
            keys = [str(key) for key in entry]
            text += f"; {', '.join(keys[:-1])} and {keys[-1]} stand side by side"
            text += " (indent parameters below the name)"
        raise problem(text, *path)
    ((name, parameters),) = entry.items()
    try:
        cls = registry.get(str(name))
        if not isinstance(parameters, dict | None):
            known = ", ".join(cls.model_fields)
            text = f"should be its parameters, {{name: value}}, not {shortened(parameters)}; it has {known}"
            raise problem(text, *path, str(name))
        return cls.model_validate({} if parameters is None else parameters)
    except UsageError as error:
        raise problem(error.what, *path) from None
    except ValidationError as error:
        first = problems(error)[0]
        meant = cls.model_fields if len(first["loc"]) == 1 else ()
        raise problem(describe(first, meant), *path, str(name), *first["loc"]) from None


def problem(text: str, *path: str | int) -> PydanticCustomError:
    """An error at `path` below the field that is read."""
    return PydanticCustomError("methods", "{text}", {"text": text, "path": path})
