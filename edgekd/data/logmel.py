"""Log-mel spectrograms of sound. This file needs numpy alone: it is copied beside the models.

    python logmel.py logmel.json CLIP.wav FEATURES.npy

Mel scale and triangular filters of HTK (Young et al. 2006, §5.4): mel(f) = 2595·log10(1 + f/700).
"""

from __future__ import annotations

import json
import sys
import wave
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

# Energies below this are silence: samples are in [−1, 1], and a step of 16 bits is 3e-5.
FLOOR = 1e-6


@dataclass(frozen=True)
class LogMel:
    """`rate` in Hz; `length`, `window` and `hop` in samples; filters from `low` to `high` Hz."""

    rate: int
    length: int
    window: int
    hop: int
    mels: int
    low: float
    high: float

    @property
    def frames(self) -> int:
        """How many windows fit into a clip."""
        return 1 + (self.length - self.window) // self.hop

    def fitted(self, x: np.ndarray) -> np.ndarray:
        """`x` (samples,) cut to `length`, or with silence behind it."""
        return np.pad(x[: self.length], (0, max(0, self.length - len(x))))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(…, length) in [−1, 1] to (…, frames, mels) float32: log of the energy in every filter."""
        starts = np.arange(self.frames)[:, None] * self.hop + np.arange(self.window)
        windows = x[..., starts] * np.hanning(self.window + 1)[:-1]
        power = np.abs(np.fft.rfft(windows, self.transform, axis=-1)) ** 2 / self.window
        energy = power @ self.filters.T
        features: np.ndarray = np.log(np.maximum(energy, FLOOR)).astype(np.float32)
        return features

    @property
    def transform(self) -> int:
        """Points of the Fourier transform: the next power of two."""
        return int(2 ** np.ceil(np.log2(self.window)))

    @cached_property
    def filters(self) -> np.ndarray:
        """(mels, transform/2 + 1): triangles whose corners are evenly spaced in mel."""
        first, last = 2595 * np.log10(1 + np.array([self.low, self.high]) / 700)
        corners = 700 * (10 ** (np.linspace(first, last, self.mels + 2) / 2595) - 1)
        f = np.fft.rfftfreq(self.transform, 1 / self.rate)
        left, middle, right = (corners[i : i + self.mels, None] for i in range(3))
        rising, falling = (f - left) / (middle - left), (right - f) / (right - middle)
        triangles: np.ndarray = np.maximum(0, np.minimum(rising, falling))
        return triangles

    def text(self) -> str:
        """As `logmel.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_wav(path: str) -> tuple[np.ndarray, int]:
    """Samples (n,) in [−1, 1] and their rate. Raises ValueError unless it is mono PCM of 16 bits."""
    try:
        with wave.open(path, "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            if (channels, width) != (1, 2):
                raise ValueError(
                    f"has {channels} channels of {8 * width} bits; should be mono PCM of 16 bits"
                )
            data = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"is no WAV file of PCM samples: {str(error) or 'it ends too early'}"
        ) from None
    if len(data) < 2 * count:
        raise ValueError(f"ends after {len(data) // 2} of {count} samples")
    if not count:
        raise ValueError("has no samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768, rate


def main() -> None:
    """Features of one clip, (1, 1, frames, mels), before normalisation by mean and std of model.json."""
    if len(sys.argv) != 4:
        raise SystemExit("logmel.py logmel.json CLIP.wav FEATURES.npy")
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            front_end = LogMel(**json.load(file))
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"{sys.argv[1]}: no settings of log-mel spectrograms: {error}") from None
    try:
        samples, rate = read_wav(sys.argv[2])
    except (OSError, ValueError) as error:
        raise SystemExit(f"{sys.argv[2]}: {error}") from None
    if rate != front_end.rate:
        raise SystemExit(f"{sys.argv[2]}: {rate} Hz, should be {front_end.rate}")
    np.save(sys.argv[3], front_end(front_end.fitted(samples))[None, None])


if __name__ == "__main__":
    main()
