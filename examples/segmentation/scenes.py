"""A table seen from above by rule: 48×48 pictures and their masks as PNG files, as in Pascal VOC.

Coins, cards and screws lie on a wooden, striped or plain table, over each other, in light from one side.
Colours tell nothing: a coin may be as brown as the table. The pixels at every edge have no class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 48
CLASSES = ("table", "coin", "card", "screw")


def scene(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(48, 48, 3) and (48, 48), uint8."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    angle, pitch = draw.uniform(0, np.pi), draw.uniform(3, 9)
    stripes = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / pitch)
    picture = draw.uniform(60, 190, 3) + (stripes * draw.uniform(0, 25))[..., None]
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(draw.integers(3, 7)):
        kind = int(draw.integers(1, 4))
        inside, relief = _thing(kind, x, y, draw)
        colour = draw.uniform(60, 200, 3) + (relief * draw.uniform(10, 35))[..., None]
        picture = np.where(inside[..., None], colour, picture)
        # A shadow at one side of it.
        shadow = np.roll(inside, (1, 1), (0, 1)) & ~inside
        picture = picture * np.where(shadow, 0.75, 1.0)[..., None]
        mask[inside] = kind
    light = (
        1 + draw.uniform(-0.3, 0.3) * (x / SIZE - 0.5) + draw.uniform(-0.3, 0.3) * (y / SIZE - 0.5)
    )
    picture = picture * light[..., None] + draw.normal(0, 12, picture.shape)
    edge = (np.roll(mask, 1, 0) != mask) | (np.roll(mask, 1, 1) != mask)
    return np.clip(picture, 0, 255).astype(np.uint8), np.where(edge, 255, mask).astype(np.uint8)


def _thing(
    kind: int, x: np.ndarray, y: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Where it is, and the relief on it, in [−1, 1]."""
    cx, cy = draw.uniform(4, SIZE - 4, 2)
    turn = draw.uniform(0, np.pi)
    u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    if kind == 1:
        r, radius = np.hypot(u, v), draw.uniform(4, 9)
        return r < radius, np.cos(np.pi * r / radius * 2)
    if kind == 2:
        width, height = draw.uniform(6, 11), draw.uniform(4, 8)
        return (abs(u) < width) & (abs(v) < height), np.sign(np.sin(v))
    length, thick = draw.uniform(8, 16), draw.uniform(1.5, 2.5)
    head = np.hypot(u - length, v) < 2 * thick
    return ((abs(u) < length) & (abs(v) < thick)) | head, np.sin(2.5 * u)


def write(folder: Path, train: int = 600, test: int = 300, seed: int = 0) -> Path:
    """`train/` and `test/`, each with `images/` and `masks/`, and `classes.txt` when all is there."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture, mask = scene(draw)
            Image.fromarray(picture).save(folder / split / f"images/{i:04}.png")
            Image.fromarray(mask).save(folder / split / f"masks/{i:04}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return folder
