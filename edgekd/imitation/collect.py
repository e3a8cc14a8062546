"""Ask the teacher about every text, as often as it votes; every answer is paid once, and kept."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekd.artifacts import disk_errors, sha256_json, write_json
from edgekd.errors import StageError, UsageError
from edgekd.imitation.prompt import messages, parse, response_format
from edgekd.imitation.settings import Imitate, folded
from edgekd.progress import Progress
from edgekd.teachers.collect import ask_all
from edgekd.teachers.http import Client
from edgekd.teachers.tables import read_table, write_parquet

# With so many answers and none that can be read, asking on is a waste.
_HOPELESS = 20
# A token is a byte or more of text; a message has a few around it.
_AROUND_MESSAGE = 16
_MILLION = 1_000_000


@dataclass(frozen=True)
class Text:
    """One text to be labelled; `label` is the right one where it is known."""

    id: str
    text: str
    label: str | None


@dataclass(frozen=True)
class Question:
    """One request: vote number `vote` on a text. `key` names its answer in the journal."""

    text: Text
    vote: int
    key: str
    body: dict[str, Any]
    most: float


def read_texts(settings: Imitate, base: Path) -> list[Text]:
    """Every text of the file. Raises UsageError for anything that cannot be used."""
    path = base / Path(settings.texts).expanduser()
    if not path.is_file():
        raise UsageError(f"no such file: {path}", where="texts")
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Text(str(i), line, None) for i, line in enumerate(lines) if line.strip()]
    table = read_table(path)
    for name in (settings.text, settings.id, settings.label):
        if name is not None and name not in table.columns:
            raise UsageError(
                f"has no column {name!r}; it has {', '.join(table.columns)}", where=str(path)
            )
    columns = table.columns
    ids = [str(v) for v in columns[settings.id]] if settings.id else map(str, range(table.rows))
    labels = [str(v) for v in columns[settings.label]] if settings.label else [None] * table.rows
    found = [
        Text(i, str(text), label)
        for i, text, label in zip(ids, columns[settings.text], labels, strict=True)
    ]
    if len({text.id for text in found}) < len(found):
        raise UsageError("an id stands there more than once", where=f"{path} ({settings.id})")
    if not found:
        raise UsageError("has no texts", where=str(path))
    return found


def collect(settings: Imitate, base: Path, folder: Path, progress: Progress) -> dict[str, Any]:
    """`answers.parquet`: a row per text and vote; `collect.json`: counts, tokens, costs.

    The journal `answers.jsonl` is written as answers come: interrupted, the same command goes on.
    Equal texts are asked about once. Raises StageError when the cap on costs is reached, or when
    nothing that comes back can be read.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    texts = read_texts(settings, base)
    unique = list({folded(text.text): text for text in reversed(texts)}.values())[::-1]
    if len(unique) < len(texts):
        progress.say(
            f"  {len(texts) - len(unique)} texts are there more than once: asked about once"
        )
    client = _client(settings, base)
    journal = _Journal(folder / "answers.jsonl")
    as_json = _constrains(settings, client, unique[0], journal)
    plan = [
        _question(settings, text, vote, as_json)
        for text in unique
        for vote in range(settings.votes)
    ]
    try:
        _ask_missing(settings, client, plan, journal, progress)
    finally:
        rows = [journal.rows[q.key] | _about(q) for q in plan if q.key in journal.rows]
        summary = _summary(settings, texts, plan, rows, journal)
        if rows:
            write_parquet(folder / "answers.parquet", rows, tuple(settings.classes))
        write_json(folder / "collect.json", summary)
    for problem in summary["warnings"]:
        progress.say(f"  warning: {problem}")
    return summary


class _Journal:
    """Answers by key, a JSON line each, on disk before the next is waited for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    self.rows[row.pop("key")] = row
                except (ValueError, KeyError, AttributeError):
                    continue  # the line that a crash cut short

    def keep(self, key: str, row: dict[str, Any]) -> None:
        with disk_errors(self.path), self.path.open("ab") as file:
            # A cut line stays alone on its line.
            start = b"\n" if file.tell() else b""
            file.write(start + json.dumps({"key": key, **row}).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = row

    @property
    def spent(self) -> float:
        return sum(row["cost"] or 0.0 for row in self.rows.values())


def _ask_missing(
    settings: Imitate, client: Client, plan: list[Question], journal: _Journal, progress: Progress
) -> None:
    missing = [question for question in plan if question.key not in journal.rows]
    reserved: dict[str, float] = {}
    usable = sum(journal.rows[q.key]["label"] is not None for q in plan if q.key in journal.rows)
    answered = len(plan) - len(missing)

    def affordable() -> Iterator[Question]:
        """What surely stays below the cap, with what is under way at its most expensive."""
        while missing:
            most = missing[0].most
            left = (settings.max_cost or 0) - journal.spent - sum(reserved.values())
            if settings.max_cost is not None and most > left:
                return
            question = missing.pop(0)
            reserved[question.key] = most
            yield question

    def ask(question: Question) -> dict[str, Any]:
        return _row(settings, client.post("/chat/completions", question.body))

    with progress.task("ask the teacher", len(plan), answered) as task:
        while missing:
            before = len(missing)
            for question, row in ask_all(
                affordable(), ask, concurrency=settings.concurrency, stop=client.stop
            ):
                reserved.pop(question.key)
                journal.keep(question.key, row)
                answered, usable = answered + 1, usable + (row["label"] is not None)
                task.advance(1, usable=f"{usable}/{answered}", cost=f"{journal.spent:.4g}")
                if settings.max_cost is not None and row["cost"] is None:
                    client.stop()
                    raise StageError(
                        "the server does not say how many tokens it used: max_cost cannot be kept",
                        where=settings.teacher,
                        fix="leave max_cost out, and limit the number of texts",
                    )
                if answered == _HOPELESS and not usable:
                    client.stop()
                    raise StageError(
                        f"none of the first {answered} answers is usable ({row['problem']}), such as "
                        f"{row['answer'][:80]!r}",
                        where=settings.teacher,
                        fix="look at answers.parquet; change task, template, examples or max_tokens",
                    )
            if len(missing) == before:
                raise StageError(
                    f"the next answer might exceed max_cost {settings.max_cost:g}: {journal.spent:.4g} "
                    f"is spent, {answered} of {len(plan)} answers are there",
                    where="max_cost",
                    fix="raise it and run the same command to go on, or clean what is there",
                )


def _row(settings: Imitate, answer: Any) -> dict[str, Any]:
    """What is kept of an answer: the text, the label or why there is none, tokens and cost."""
    try:
        said = answer["choices"][0]["message"]["content"] or ""
        parsed = parse(str(said), settings.classes)
    except (KeyError, IndexError, TypeError):
        said, parsed = "", parse("", settings.classes)
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    given, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    cost = None
    if isinstance(given, int) and isinstance(written, int):
        price = settings.price
        cost = (given * price.input + written * price.output) / _MILLION if price else 0.0
    return {
        "answer": str(said),
        "label": parsed.label,
        "rationale": parsed.rationale,
        "problem": parsed.problem,
        "prompt_tokens": given if isinstance(given, int) else None,
        "completion_tokens": written if isinstance(written, int) else None,
        "cost": cost,
        "served_by": str(answer.get("model", "")) if isinstance(answer, dict) else "",
        "asked": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _question(settings: Imitate, text: Text, vote: int, as_json: bool) -> Question:
    asked = messages(settings, text.text, as_json=as_json)
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": asked,
        "temperature": settings.heat,
        "max_tokens": settings.max_tokens,
    }
    if as_json:
        body["response_format"] = response_format(settings)
    key = sha256_json({"teacher": settings.teacher, "vote": vote, **body})
    most = 0.0
    if settings.price:
        given = sum(len(m["content"].encode()) + _AROUND_MESSAGE for m in asked)
        tokens = given * settings.price.input + settings.max_tokens * settings.price.output
        most = tokens / _MILLION
    return Question(text, vote, key, body, most)


def _constrains(settings: Imitate, client: Client, text: Text, journal: _Journal) -> bool:
    """Whether answers are constrained by JSON Schema; `auto` finds out with the first question."""
    if settings.response_format != "auto":
        return settings.response_format == "json_schema"
    for as_json in (True, False):
        if _question(settings, text, 0, as_json).key in journal.rows:
            return as_json
    question = _question(settings, text, 0, True)
    if settings.max_cost is not None and question.most > settings.max_cost:
        return False
    try:
        journal.keep(question.key, _row(settings, client.post("/chat/completions", question.body)))
    except StageError as error:
        if any(f"says {status}" in error.what for status in (400, 415, 422, 501)):
            return False
        raise
    return True


def _about(question: Question) -> dict[str, Any]:
    text = question.text
    return {"id": text.id, "text": text.text, "vote": question.vote, "known_label": text.label}


def _summary(
    settings: Imitate,
    texts: list[Text],
    plan: list[Question],
    rows: list[dict[str, Any]],
    journal: _Journal,
) -> dict[str, Any]:
    problems: dict[str, int] = {}
    for row in rows:
        if row["problem"]:
            problems[row["problem"]] = problems.get(row["problem"], 0) + 1
    served = sorted({row["served_by"] for row in rows if row["served_by"]})
    warnings = []
    if len(served) > 1:
        warnings.append(f"the teacher changed in between: answers are of {' and '.join(served)}")
    return {
        "settings": settings.model_dump(mode="json"),
        "texts": len(texts),
        "questions": len(plan),
        "answers": len(rows),
        "usable": sum(row["label"] is not None for row in rows),
        "problems": problems,
        "prompt_tokens": sum(row["prompt_tokens"] or 0 for row in rows),
        "completion_tokens": sum(row["completion_tokens"] or 0 for row in rows),
        "cost": journal.spent if settings.price else None,
        "served_by": served,
        "warnings": warnings,
    }


def _client(settings: Imitate, base: Path) -> Client:
    parts = urlsplit(settings.teacher)
    scheme = "https" if parts.scheme == "chats" else "http"
    return Client(
        f"{scheme}://{parts.netloc}{parts.path}",
        timeout=settings.timeout,
        retries=settings.retries,
        pause=settings.pause,
        connections=settings.concurrency,
        ca=None if settings.ca is None else base / Path(settings.ca).expanduser(),
        key=settings.key,
    )
