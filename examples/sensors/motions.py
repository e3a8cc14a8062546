"""A wrist's accelerometer by rule: three axes in g at 50 Hz, 2.56 s a window, as the UEA archive writes them.

Every motion is gravity in some pose, a rhythm of its own with harmonics, and noise. `walk` and `stairs`
differ in the rhythm's evenness, `run` in its rate and force, `shake` and `wave` in the axis.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

RATE, LENGTH = 50, 128
MOTIONS = ("rest", "run", "shake", "stairs", "walk", "wave")
# (rate in Hz, force in g, share of the second harmonic, axis that moves most, unevenness)
_RULES = {
    "rest": (1.0, 0.02, 0.0, 2, 0.0),
    "walk": (1.8, 0.35, 0.5, 2, 0.05),
    "stairs": (1.5, 0.35, 0.5, 2, 0.45),
    "run": (2.7, 0.9, 0.3, 2, 0.05),
    "shake": (5.0, 0.8, 0.1, 0, 0.2),
    "wave": (1.7, 0.5, 0.1, 1, 0.1),
}


def window(motion: str, draw: np.random.Generator) -> np.ndarray:
    """(3, 128) in g."""
    rate, force, harmonic, axis, uneven = _RULES[motion]
    t = np.arange(LENGTH) / RATE
    rate, force = rate * draw.uniform(0.8, 1.25), force * draw.uniform(0.5, 1.5)
    phase = 2 * np.pi * (rate * t + draw.random())
    phase = phase + 2 * uneven * np.sin(phase / 2 + draw.uniform(0, 6))
    beat = np.sin(phase) + harmonic * np.sin(2 * phase + draw.uniform(0, 6))
    pose = draw.normal([0, 0, 1], 0.25)
    along = np.full(3, 0.25) + draw.normal(0, 0.1, 3)
    along[axis] += 0.75
    moved = pose[:, None] / np.linalg.norm(pose) + force * along[:, None] * beat
    return moved + draw.normal(0, 0.12, (3, LENGTH))


def write(folder: Path, train: int = 900, test: int = 600, seed: int = 0) -> Path:
    """`Motions_TRAIN.ts` and `Motions_TEST.ts`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for name, count in (("TRAIN", train), ("TEST", test)):
        lines = [
            "@problemName Motions", "@timeStamps false", "@missing false", "@univariate false",
            "@dimensions 3", "@equalLength true", f"@seriesLength {LENGTH}",
            f"@classLabel true {' '.join(MOTIONS)}", "@data",
        ]  # fmt: skip
        for i in range(count):
            motion = MOTIONS[i % len(MOTIONS)]
            axes = (",".join(f"{v:.4f}" for v in axis) for axis in window(motion, draw))
            lines.append(f"{':'.join(axes)}:{motion}")
        (folder / f"Motions_{name}.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
