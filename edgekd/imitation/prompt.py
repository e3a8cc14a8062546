"""The question as messages, and the answer as a class, or why it is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgekd.imitation.settings import Imitate, folded


@dataclass(frozen=True)
class Parsed:
    """`label` is one of the classes, or None: then `problem` says why."""

    label: str | None
    rationale: str | None = None
    problem: str | None = None


def messages(settings: Imitate, text: str, *, as_json: bool) -> list[dict[str, str]]:
    """System, few-shot examples, and the question about `text`, which nothing in it can change."""
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in settings.classes)
    shape = '{"rationale": "one sentence", "label": "the class"}' if settings.rationale else None
    if shape is None and as_json:
        shape = '{"label": "the class"}'
    how = f"Answer with JSON only: {shape}." if shape else "Answer with the name of the class only."
    found = [{"role": "system", "content": f"{settings.task}\nThe classes are: {names}.\n{how}"}]
    for example in settings.examples:
        answer = example.label
        if shape:
            reason = {"rationale": example.rationale or ""} if settings.rationale else {}
            answer = json.dumps({**reason, "label": example.label}, ensure_ascii=False)
        found.append({"role": "user", "content": settings.template.replace("{text}", example.text)})
        found.append({"role": "assistant", "content": answer})
    found.append({"role": "user", "content": settings.template.replace("{text}", text)})
    return found


def response_format(settings: Imitate) -> dict[str, Any]:
    """JSON Schema that admits the classes only."""
    properties: dict[str, Any] = {"rationale": {"type": "string"}} if settings.rationale else {}
    properties["label"] = {"type": "string", "enum": settings.classes}
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


def parse(answer: str, classes: list[str]) -> Parsed:
    """One of the classes and nothing else, plain or as JSON; a class among other words is rejected.

    ("not positive" has a class in it, too.)
    """
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    rationale = None
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, dict):
        said = value.get("rationale")
        rationale = said if isinstance(said, str) else None
        value = value.get("label")
    if not isinstance(value, str) or not folded(value):
        return Parsed(None, rationale, "no label in it")
    names = {folded(name): name for name in classes}
    said = folded(value).removeprefix("label:").removeprefix("class:")
    label = names.get(folded(said))
    if label is None:
        return Parsed(None, rationale, "not one of the classes")
    return Parsed(label, rationale)
