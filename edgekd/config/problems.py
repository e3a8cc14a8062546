"""What pydantic finds wrong, in words for whoever wrote it: of one kind of value, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from edgekd.registry import suggestion

Place = tuple[str | int, ...]
# Kinds of errors whose text is edgekd's own and says all.
_OWN = ("value_error", "methods", "sections")
# How pydantic names one of several kinds that a value may be of, in the place of what is wrong.
_KIND = re.compile(r"(list|dict|literal)\[.*\]$|constrained-\w+$|(int|float|bool|str)$")


def problems(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's dictionaries; where a value may be of several kinds, of the kind that fits it best.

    Pydantic puts each kind's type, such as "list[str]", into the place, and tells what is wrong with all.
    """
    kept: dict[int | Place, dict[str, Any]] = {}
    for number, found in enumerate(error.errors()):
        problem: dict[str, Any] = dict(found)
        loc: Place = problem["loc"]
        kinds = [i for i, key in enumerate(loc) if _KIND.match(str(key))]
        if not kinds:
            kept[number] = problem
            continue
        place, rest = loc[: kinds[0]], loc[kinds[0] + 1 :]
        known = kept.get(place)
        if known is None or len(place) + len(rest) > len(known["loc"]):
            kept[place] = problem | {"loc": (*place, *rest)}
        elif known["loc"] == place and not rest:
            other = problem["msg"].removeprefix("Input should be ")
            kept[place] = known | {"msg": f"{known['msg']}, or {other}"}
    return list(kept.values())


def describe(problem: dict[str, Any], known: Iterable[str] = ()) -> str:
    """One of them without its place; `known` are the keys that could have been meant."""
    if problem["type"] == "extra_forbidden":
        return f"unknown key{suggestion(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return "this key is required"
    if problem["type"] == "too_short":
        return "should not be empty"
    text: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in _OWN:
        return text
    text = re.sub(r" or instance of \w+", "", text)
    return f"{text[0].lower()}{text[1:]}, not {shortened(problem['input'])}"


def shortened(value: object) -> str:
    """As Python writes it, in 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
