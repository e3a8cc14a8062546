"""Read a configuration: YAML with line numbers, `--set a.b=c`, and errors that point at the place."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edgekd.config.problems import describe, problems, shortened
from edgekd.config.schema import Config, Section
from edgekd.errors import UsageError

S = TypeVar("S", bound=Section)
KeyPath = tuple[str | int, ...]
# Where a key was written: its line, or the command-line option that set it.
Lines = Mapping[KeyPath, int | str]
_MAX_BYTES = 1_000_000


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read and validate `path`, with `overrides` such as "distill.epochs=3" applied on top.

    Raises UsageError naming file, line and key, with the nearest valid key for a misspelt one.
    """
    value, lines = read_yaml(path)
    overrides = list(overrides)
    value = apply_overrides(value, overrides)
    return validate(value, where=str(path), lines=_overridden(lines, overrides))


def _overridden(lines: Lines, overrides: list[str]) -> Lines:
    """`lines` with the option instead of the line for every key that an override has set."""
    found = dict(lines)
    for override in overrides:
        dotted = override.partition("=")[0]
        path = tuple(int(key) if key.isdigit() else key for key in dotted.split("."))
        found = {key: line for key, line in found.items() if key[: len(path)] != path}
        found[path] = f"--set {dotted}"
        for length in range(1, len(path)):
            found.setdefault(path[:length], f"--set {dotted}")
    return found


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """A YAML mapping as plain data, and the 1-based line of every key path in it.

    Raises UsageError for a missing or unreadable file, bad YAML, duplicate or non-text keys.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError("too large to be a configuration", where=str(path))
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(
            "no such file", where=str(path), fix="`edgekd init` writes a commented one"
        ) from None
    except UnicodeDecodeError:
        raise UsageError("not a UTF-8 text file", where=str(path)) from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """`read_yaml` for text that is already in memory; `where` names it in errors."""
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        lines: dict[KeyPath, int] = {}
        value = _plain(node, (), lines, loader, where, open_nodes=())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"not valid YAML: {problem}", where=f"{where}{line}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid YAML: {error}", where=where) from None
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise UsageError("should be a mapping of sections, such as `data:`", where=where)
    return value, lines


def _plain(
    node: yaml.Node,
    path: KeyPath,
    lines: dict[KeyPath, int],
    loader: yaml.SafeLoader,
    where: str,
    open_nodes: tuple[yaml.Node, ...],
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if node in open_nodes:
        raise UsageError("an alias that contains itself", where=f"{where}:{line}")
    if len(lines) > 20_000:
        raise UsageError("too many keys for a configuration", where=f"{where}:{line}")
    inside = (*open_nodes, node)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            key = _scalar(key_node, loader, f"{where}:{key_line}")
            if not isinstance(key, str):
                raise UsageError(f"key {key!r} should be text", where=f"{where}:{key_line}")
            if key in result:
                raise UsageError(f"key {key!r} appears twice", where=f"{where}:{key_line}")
            lines[(*path, key)] = key_line
            result[key] = _plain(value_node, (*path, key), lines, loader, where, inside)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(item, (*path, i), lines, loader, where, inside)
            for i, item in enumerate(node.value)
        ]
    return _scalar(node, loader, f"{where}:{line}")


def _scalar(
    node: yaml.Node, loader: yaml.SafeLoader, where: str
) -> bool | int | float | str | None:
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError("a list or a mapping cannot be a key", where=where)
    try:
        value = loader.construct_object(node, deep=True)
    except (ValueError, AttributeError, TypeError, KeyError):
        # PyYAML's own constructors fail in these ways on a tag that does not fit its text.
        raise UsageError(
            f"{shortened(node.value)} is not a valid {node.tag}", where=where
        ) from None
    # YAML 1.1 reads 1e-3 (no dot) as text; people mean the number.
    if isinstance(value, str) and node.style is None and _EXPONENT.fullmatch(value):
        value = float(value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise UsageError(
            f"{shortened(node.value)} is read as a {type(value).__name__}",
            where=where,
            fix="put it in quotes if text is meant",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{node.value} is not a finite number", where=where)
    return value


_EXPONENT = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+")


def apply_overrides(value: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set dotted keys: "distill.methods.0.kd.temperature=2" on a copy of `value`.

    Values are YAML. Raises UsageError for a malformed override or a path through a non-section.
    """
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise UsageError(
                f"{override!r} should be KEY=VALUE, such as distill.epochs=3", where="--set"
            )
        parsed, _ = parse_yaml(f"value: {text}", where=f"--set {override}")
        value = _replaced(value, dotted.split("."), parsed.get("value"), f"--set {override}")
    return value


def of_gate(override: str) -> bool:
    """Whether an override is on the section `gate`, or on a key of it."""
    return override.partition("=")[0].partition(".")[0].strip() == "gate"


def _replaced(value: Any, keys: list[str], new: Any, where: str) -> Any:
    """A copy of `value` in which the item under `keys` is `new`."""
    if not keys:
        return new
    key, *rest = keys
    if isinstance(value, list):
        if not key.isdigit() or int(key) >= len(value):
            raise UsageError(
                f"{key!r} should be an index below {len(value)} in this list", where=where
            )
        index = int(key)
        return [*value[:index], _replaced(value[index], rest, new, where), *value[index + 1 :]]
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UsageError(f"{key!r} is looked up in {value!r}, which is not a section", where=where)
    return {**value, key: _replaced(value.get(key), rest, new, where)}


def validate(value: dict[str, Any], *, where: str, lines: Lines) -> Config:
    """Check plain data against the schema. Raises UsageError listing every problem with its line."""
    return validate_as(Config, value, where=where, lines=lines)


def validate_as(schema: type[S], value: dict[str, Any], *, where: str, lines: Lines) -> S:
    """`validate` for any section of YAML with a schema of its own."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found = [_placed(problem, where, lines, schema) for problem in problems(error)]
    except RecursionError:
        found = [f"{where}: nested too deeply"]
    if len(found) == 1:
        raise UsageError(found[0])
    listed = "\n".join(f"  {problem}" for problem in found[:10])
    more = f"\n  … and {len(found) - 10} more" if len(found) > 10 else ""
    raise UsageError(f"{len(found)} problems:\n{listed}{more}")


def _placed(problem: dict[str, Any], where: str, lines: Lines, schema: type[Section]) -> str:
    """The line that it was written in, its key, and what is wrong with it."""
    loc: KeyPath = (*problem["loc"], *problem.get("ctx", {}).get("path", ()))
    known = loc
    while known and known not in lines:
        known = known[:-1]
    place = where
    if known:
        line = lines[known]
        place = line if isinstance(line, str) else f"{where}:{line}"
    key = ".".join(map(str, loc))
    meant = _fields(schema, loc[:-1]) if problem["type"] == "extra_forbidden" else []
    text = describe(problem, meant)
    return f"{place}: {key}: {text}" if key else f"{place}: {text}"


def _fields(schema: type[Section], path: KeyPath) -> list[str]:
    """The keys that the section at `path` knows."""
    model: Any = schema
    for key in path:
        if isinstance(key, int):
            continue
        model = model.model_fields[key].annotation
        arguments = [a for a in getattr(model, "__args__", ()) if isinstance(a, type)]
        if not (isinstance(model, type) and issubclass(model, BaseModel)) and arguments:
            model = arguments[0]
    return list(model.model_fields)
