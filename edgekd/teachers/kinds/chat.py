"""Black-box: `chat://…`, a language model that only answers; `edgekd imitate` asks it beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import UsageError
from edgekd.teachers.teacher import Teacher, teacher

if TYPE_CHECKING:
    from edgekd.config.schema import Config


class _Chat(Teacher):
    """It answers texts, which the line does not read: its answers come to it as records."""

    sees_views = False

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """Always refused, saying which way it goes."""
        raise UsageError(
            "a chat teacher is asked beforehand",
            where="teacher.model",
            fix="edgekd imitate collect, clean and train write its answers as records.parquet; then "
            "teacher: {model: 'records:records.parquet'}",
        )


@teacher("chat", transparency="black-box", provides={"labels"})
class ChatTeacher(_Chat):
    """Over plain HTTP."""


@teacher("chats", transparency="black-box", provides={"labels"})
class ChatsTeacher(_Chat):
    """Over TLS."""
