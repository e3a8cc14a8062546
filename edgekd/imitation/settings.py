"""What `edgekd imitate` reads: a language model behind a chat endpoint, texts, and how it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from edgekd.config.load import apply_overrides, read_yaml, validate_as
from edgekd.config.schema import NonNegative, Positive, Section
from edgekd.teachers.http import check_url

SCHEMES = ("chat", "chats")


class Example(Section):
    """A text with its right answer, shown to the teacher before every question."""

    text: str = Field(min_length=1)
    label: str
    rationale: str | None = None


class Price(Section):
    """In any one currency, per million tokens."""

    input: NonNegative
    output: NonNegative


class Clean(Section):
    """Which answers are good enough to learn from."""

    min_agreement: float = Field(
        0.6, ge=0, le=1, description="Share of a text's votes for its label, at least."
    )
    min_characters: int = Field(1, ge=0)
    max_characters: int = Field(20_000, ge=1)


class Imitate(Section):
    """One imitation: collect the answers, clean them, train on them."""

    teacher: str = Field(
        description="chat://HOST:PORT/v1, or chats:// over TLS: an OpenAI-compatible endpoint."
    )
    model: str = Field(min_length=1, description="The model's name there.")
    texts: str = Field(
        description=".csv, .jsonl or .parquet with a column of texts; .txt: one a line."
    )
    text: str = Field("text", description="Column with the text.")
    id: str | None = Field(None, description="Column with the sample's id; null: the row's number.")
    label: str | None = Field(
        None,
        description="Column with the right label where it is known: only to judge the teacher.",
    )
    task: str = Field("Classify the text.", description="What is asked for.")
    classes: list[str] = Field(min_length=2)
    examples: list[Example] = Field([], description="Few-shot examples.")
    template: str = Field("{text}", description="The question; {text} stands for the text.")
    rationale: bool = Field(False, description="Ask for a reason too; it is kept as data.")
    votes: int = Field(1, ge=1, le=99, description="Answers to every text (self-consistency).")
    temperature: float | None = Field(
        None, ge=0, le=2, description="null: 0 for a single answer, 0.7 for votes."
    )
    max_tokens: int = Field(256, ge=1, description="Longest answer.")
    response_format: Literal["auto", "json_schema", "none"] = Field(
        "auto", description="Constrain answers to the classes by JSON Schema; auto: where it can."
    )
    price: Price | None = Field(None, description="For the accounting, and for max_cost.")
    max_cost: Positive | None = Field(None, description="Spend no more than this, in all.")
    key: str | None = Field(None, description="Environment variable that holds the API key.")
    ca: str | None = Field(None, description="File of the certificates to trust.")
    concurrency: int = Field(4, ge=1, le=256)
    timeout: float = Field(60.0, gt=0)
    retries: int = Field(5, ge=0, le=100)
    pause: float = Field(0.5, ge=0)
    clean: Clean = Field(default_factory=Clean)
    student: str | None = Field(
        None,
        description="Configuration of the line whose data has these ids; `train` distils it from the "
        "records. null: only the records are written.",
    )

    @field_validator("teacher")
    @classmethod
    def _address(cls, value: str) -> str:
        check_url(value, SCHEMES)
        return value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len({folded(name) for name in value}) < len(value) or not all(map(folded, value)):
            raise ValueError("should be different names, also without regard to case and marks")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Imitate:
        for example in self.examples:
            if example.label not in self.classes:
                raise ValueError(f"an example has the label {example.label!r}, which is no class")
        if "{text}" not in self.template:
            raise ValueError("template should have {text} in it")
        if self.max_cost is not None and self.price is None:
            raise ValueError("max_cost needs price: {input: …, output: …} per million tokens")
        return self

    @property
    def heat(self) -> float:
        """The temperature that is asked with."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.votes == 1 else 0.7


def load_settings(path: Path, overrides: tuple[str, ...] = ()) -> Imitate:
    """Read and validate. Raises UsageError naming file, line and key."""
    value, lines = read_yaml(path)
    return validate_as(Imitate, apply_overrides(value, overrides), where=str(path), lines=lines)


def folded(text: str) -> str:
    """A name as answers are compared: no case, no marks or spaces around it."""
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'`*_()[]{}<>")
