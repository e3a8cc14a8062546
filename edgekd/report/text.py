"""Names from models, data and devices as text that nothing takes for an instruction."""

from __future__ import annotations

import unicodedata


def one_line(text: str) -> str:
    """The text on one line; what controls a terminal or turns the text around it shows as �."""
    return "".join(
        " " if character.isspace() else "\ufffd" if _unprintable(character) else character
        for character in text
    )


def _unprintable(character: str) -> bool:
    """What XML forbids, and what would turn the direction of the text around it."""
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Cn")
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
    )
