"""Test samples that teacher and student disagree on, as pictures small enough for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from edgekd.errors import UsageError
from edgekd.report.classes import Answers
from edgekd.report.contents import arrays
from edgekd.results import InputSpec

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run

_MOST_PIXELS = 128  # of a side
_MOST_VALUES = 160  # of a line
_MOST_LETTERS = 300


@dataclass(frozen=True)
class Answer:
    """What a model says, and its probability of that as text."""

    model: str
    name: str
    probability: str
    right: bool


@dataclass(frozen=True)
class Example:
    """A sample: its position in the data set, a picture of it, its class, and every answer."""

    index: int
    picture: Markup
    label: str
    answers: tuple[Answer, ...]
    lost: bool


def examples(
    run: Run, found: Sequence[Answers], classes: tuple[str, ...], spec: InputSpec
) -> tuple[Example, ...]:
    """The samples that the verify stage kept: what was lost first, then what was won.

    Raises UsageError when `verify/examples.npz` is not what the stage wrote.
    """
    path = run.path / "verify/examples.npz"
    kept = arrays(path, None, what="test samples")
    if not found or not kept:
        return ()
    if not _valid(kept, spec, len(found[0].labels)):
        raise UsageError(
            "is of other inputs than this run has",
            where=str(path),
            fix="run edgekd verify with --force",
        )
    positions, inputs = kept["positions"], kept["inputs"]
    texts = kept["texts"].tolist() if "texts" in kept else [None] * len(inputs)
    shown = [
        _example(int(position), raw, text, found, classes, spec)
        for position, raw, text in zip(positions.tolist(), inputs, texts, strict=True)
    ]
    return tuple(sorted(shown, key=lambda example: not example.lost))


def _valid(kept: dict[str, np.ndarray], spec: InputSpec, samples: int) -> bool:
    """Whether these are inputs of the models, from the test split."""
    if not {"positions", "inputs"} <= kept.keys():
        return False
    positions, inputs = kept["positions"], kept["inputs"]
    if positions.dtype.kind not in "iu" or inputs.dtype.kind not in "uif":
        return False
    if positions.ndim != 1 or inputs.shape != (len(positions), *spec.shape):
        return False
    if "texts" in kept and (kept["texts"].dtype.kind, len(kept["texts"])) != ("U", len(inputs)):
        return False
    inside = ((positions >= 0) & (positions < samples)).all()
    return bool(inside and np.isfinite(inputs).all())


def _example(
    position: int,
    raw: np.ndarray,
    words: str | None,
    found: Sequence[Answers],
    classes: tuple[str, ...],
    spec: InputSpec,
) -> Example:
    first = found[0]
    label = int(first.labels[position])
    said = [("teacher", first.logits["teacher"][position])]
    for a in found:
        name = "student" if a.variant == "f32" else f"{a.variant} student"
        said.append((name, a.logits["student"][position]))
    answers = tuple(_answer(model, logits, label, classes) for model, logits in said)
    text = f"Test sample {int(first.indices[position])}, class {classes[label]}"
    return Example(
        int(first.indices[position]),
        _picture(raw / spec.scale, text) if words is None else _quoted(words),
        classes[label],
        answers,
        answers[0].right,
    )


def _answer(model: str, logits: np.ndarray, label: int, classes: tuple[str, ...]) -> Answer:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    chosen = int(logits.argmax())
    share = powers[chosen] / powers.sum()
    return Answer(model, classes[chosen], f"{100 * share:.0f} %", chosen == label)


def _quoted(words: str) -> Markup:
    """The text itself, its beginning where it is long."""
    shown = words if len(words) <= _MOST_LETTERS else f"{words[:_MOST_LETTERS]} …"
    return Markup("<q>{}</q>").format(shown)


def _picture(values: np.ndarray, text: str) -> Markup:
    """An image of (channels, height, width); a line for anything with one row of values."""
    if values.ndim == 3 and min(values.shape[1:]) > 1:
        return _image(values, text)
    return _line(values.reshape(values.shape[0], -1) if values.ndim > 1 else values[None], text)


def _image(values: np.ndarray, text: str) -> Markup:
    from PIL import Image

    if values.min() < 0 or values.max() > 1:  # centred data: as bright as it goes
        low, high = float(values.min()), float(values.max())
        values = (values - low) / max(high - low, 1e-12)
    if len(values) != 3:
        values = values.mean(axis=0, keepdims=True)
    pixels = (values * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, text)


def _line(channels: np.ndarray, text: str) -> Markup:
    """The values of every channel in order, from the least of all to the greatest."""
    low, high = float(channels.min()), float(channels.max())
    lines = Markup("")
    for values in channels[:3]:
        kept = values[np.linspace(0, len(values) - 1, min(len(values), _MOST_VALUES)).astype(int)]
        heights = 44 - 40 * (kept - low) / max(high - low, 1e-12)
        across = np.linspace(2, 118, len(kept)) if len(kept) > 1 else np.array([60.0])
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, heights, strict=True))
        lines += Markup('<polyline points="{}"/>').format(points)
    return Markup(
        '<svg class="line" viewBox="0 0 120 48" role="img" aria-label="{}">{}</svg>'
    ).format(text, lines)
