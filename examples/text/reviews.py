"""Reviews by rule: what is said last of a thing decides, and a negation turns it round.

`A but B` and `although A, B` say what B says; `A, and B` is mixed where both differ. No word alone
gives the answer away, so that a bag of words fails and a transformer has something to do.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

_THINGS = """
    camera battery screen speaker keyboard case hinge charger cable strap sensor lens
    motor handle filter pump lid wheel saddle brake lamp switch app manual menu sound
    picture signal range fit
"""
_GOOD = """
    good great excellent bright sturdy quick quiet precise reliable comfortable clear
    smooth handy light strong pleasant crisp generous neat superb
"""
_BAD = """
    bad poor weak dim flimsy slow noisy vague unreliable awkward blurry rough clumsy heavy
    fragile annoying dull stingy messy awful
"""
THINGS, GOOD, BAD = _THINGS.split(), _GOOD.split(), _BAD.split()
DEGREES = ["", "", "really ", "quite ", "very ", "surprisingly "]
NEGATIONS = ["not ", "never ", "hardly ", "anything but ", "far from "]
CLASSES = ("mixed", "negative", "positive")


def clause(draw: random.Random) -> tuple[str, str]:
    """A clause and what it says."""
    positive, negated = draw.random() < 0.5, draw.random() < 0.4
    word = draw.choice(GOOD if positive else BAD)
    before = draw.choice(NEGATIONS) if negated else draw.choice(DEGREES)
    said = "positive" if positive != negated else "negative"
    return f"the {draw.choice(THINGS)} is {before}{word}", said


def review(draw: random.Random) -> tuple[str, str]:
    """A text and its class."""
    (a, said_a), (b, said_b) = clause(draw), clause(draw)
    match draw.choice(["one", "but", "although", "and", "and"]):
        case "one":
            return f"{a}.", said_a
        case "but":
            return f"{a}, but {b}.", said_b
        case "although":
            return f"although {a}, {b}.", said_b
        case _:
            return f"{a}, and {b}.", said_a if said_a == said_b else "mixed"


def write(folder: Path, train: int = 3000, test: int = 1000, seed: int = 0) -> Path:
    """`train.jsonl` and `test.jsonl` of records {text, label}; no text is in both."""
    draw, seen = random.Random(seed), set()
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        lines = []
        while len(lines) < count:
            text, label = review(draw)
            if text not in seen:
                seen.add(text)
                lines.append(json.dumps({"text": text, "label": label}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
