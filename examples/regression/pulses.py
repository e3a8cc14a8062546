"""A wrist's pulse sensor by rule: light (PPG) and three axes of acceleration, 8 s at 32 Hz, with the heart
rate in beats per minute, as the archive for regression of time series writes them.

The pulse has a second harmonic (the dicrotic wave), breathing modulates its force and rate, the baseline
wanders; the arm swings at a rate of its own, which leaks into the light.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

RATE, LENGTH = 32, 256


def window(draw: np.random.Generator) -> tuple[np.ndarray, float]:
    """(4, 256), and beats per minute."""
    t = np.arange(LENGTH) / RATE
    bpm = draw.uniform(50, 170)
    breath = 2 * np.pi * (draw.uniform(0.15, 0.4) * t + draw.random())
    phase = 2 * np.pi * (bpm / 60 * t + draw.random()) + 0.3 * np.sin(breath)
    pulse = np.sin(phase) + draw.uniform(0.2, 0.6) * np.sin(2 * phase + draw.uniform(0, 1.5))
    pulse *= 1 + 0.3 * np.sin(breath + draw.uniform(0, 6))
    swing = 2 * np.pi * (draw.uniform(0.8, 2.6) * t + draw.random())
    force = draw.uniform(0, 1.2)
    along = draw.normal(0, 1, 3)
    moved = along[:, None] * (np.sin(swing) + 0.4 * np.sin(2 * swing + draw.uniform(0, 6)))
    leak = force * np.sin(swing + draw.uniform(0, 6)) * draw.uniform(0.5, 1.3)
    wander = 0.5 * np.sin(2 * np.pi * (0.1 * t + draw.random()))
    light = pulse + leak + wander + draw.normal(0, 0.4, LENGTH)
    axes = force * moved + draw.normal(0, 0.1, (3, LENGTH))
    return np.concatenate([light[None], axes]), bpm


def write(folder: Path, train: int = 1600, test: int = 800, seed: int = 0) -> Path:
    """`Pulses_TRAIN.ts` and `Pulses_TEST.ts`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for name, count in (("TRAIN", train), ("TEST", test)):
        lines = [
            "@problemName Pulses", "@timeStamps false", "@missing false", "@univariate false",
            "@dimensions 4", "@equalLength true", f"@seriesLength {LENGTH}", "@targetLabel true",
            "@data",
        ]  # fmt: skip
        for _ in range(count):
            series, bpm = window(draw)
            channels = (",".join(f"{v:.3f}" for v in channel) for channel in series)
            lines.append(f"{':'.join(channels)}:{bpm:.2f}")
        (folder / f"Pulses_{name}.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
