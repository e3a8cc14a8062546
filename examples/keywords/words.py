"""Words spoken by rule: one second at 8 kHz, as WAV files in folders like Google Speech Commands.

A word is two or three syllables of a consonant (hiss, hum or stop) and a vowel (two formants over the
harmonics of a voice). Voices differ in pitch, length of the vocal tract, pace and melody; words share
syllables in other orders; noise, hum and an echo lie over them.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

RATE = 8000
# First and second formant in Hz (Peterson and Barney 1952, men).
_VOWELS = {"a": (730, 1090), "i": (270, 2290), "u": (300, 870), "e": (530, 1840), "o": (570, 840)}
# Consonant: (kind, centre in Hz).
_CONSONANTS = {
    "s": ("hiss", 3200), "f": ("hiss", 1800), "m": ("hum", 250), "n": ("hum", 400),
    "t": ("stop", 2600),
}  # fmt: skip
WORDS = ("mata", "tama", "misu", "sumi", "foten", "tenfo", "nelo", "noleta")


def syllables(word: str) -> list[tuple[str, str]]:
    """Pairs of consonant and vowel; what is none of the consonants hums."""
    pairs, consonant = [], "m"
    for letter in word:
        if letter in _VOWELS:
            pairs.append((consonant, letter))
        else:
            consonant = letter if letter in _CONSONANTS else "n"
    return pairs


def clip(word: str, draw: np.random.Generator) -> np.ndarray:
    """(8000,) in [−1, 1]."""
    pitch, tract, pace = draw.uniform(85, 230), draw.uniform(0.85, 1.2), draw.uniform(0.8, 1.25)
    melody = draw.uniform(-0.15, 0.15)
    parts = []
    for consonant, vowel in syllables(word):
        parts.append(_consonant(consonant, 0.08 * pace * draw.uniform(0.7, 1.3), tract, draw))
        parts.append(_vowel(vowel, 0.15 * pace * draw.uniform(0.7, 1.3), pitch, tract, draw))
        pitch *= 1 + melody
    spoken = np.concatenate(parts)[: int(0.95 * RATE)]
    sound = np.zeros(RATE)
    start = draw.integers(0, RATE - len(spoken))
    sound[start : start + len(spoken)] = spoken / np.abs(spoken).max()
    delay = draw.integers(100, 900)
    sound[delay:] += draw.uniform(0, 0.4) * sound[:-delay]
    noise = np.cumsum(draw.normal(0, 1, RATE)) if draw.random() < 0.5 else draw.normal(0, 1, RATE)
    noise = noise - np.convolve(noise, np.full(200, 1 / 200), "same")
    loudness = (
        10 ** (-draw.uniform(-6, 12) / 20) * np.sqrt((spoken**2).mean()) / np.abs(spoken).max()
    )
    sound += loudness * noise / noise.std()
    return sound / np.abs(sound).max() * draw.uniform(0.2, 0.9)


def _vowel(
    name: str, seconds: float, pitch: float, tract: float, draw: np.random.Generator
) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    harmonics = np.arange(1, int(3800 / pitch) + 1)[:, None]
    gain = sum(
        1 / (1 + ((harmonics * pitch - f * tract * draw.uniform(0.93, 1.07)) / width) ** 2)
        for f, width in zip(_VOWELS[name], (90, 140), strict=True)
    )
    phase = 2 * np.pi * pitch * (t + 0.004 * np.sin(2 * np.pi * draw.uniform(3, 6) * t))
    wave = (gain / np.sqrt(harmonics) * np.sin(harmonics * phase)).sum(axis=0)
    return wave * np.hanning(len(t)) ** 0.3 / np.abs(wave).max()


def _consonant(name: str, seconds: float, tract: float, draw: np.random.Generator) -> np.ndarray:
    kind, centre = _CONSONANTS[name]
    n = max(16, int(seconds * RATE))
    t = np.arange(n) / RATE
    if kind == "hum":
        return 0.3 * np.sin(2 * np.pi * centre * tract * t) * np.hanning(n) ** 0.3
    spectrum = np.fft.rfft(draw.normal(0, 1, n))
    f = np.fft.rfftfreq(n, 1 / RATE)
    hiss = np.fft.irfft(spectrum / (1 + ((f - centre * tract) / 600) ** 2), n)
    hiss *= 0.4 / np.abs(hiss).max()
    return (
        hiss * np.exp(-t / 0.012) * (t > n / RATE / 2) if kind == "stop" else hiss * np.hanning(n)
    )


def write(folder: Path, train: int = 150, test: int = 75, seed: int = 0) -> Path:
    """So many clips of every word; `testing_list.txt` when all are there."""
    draw = np.random.default_rng(seed)
    listed = []
    for word in WORDS:
        (folder / word).mkdir(parents=True, exist_ok=True)
        for i in range(train + test):
            path = folder / word / f"{i:04}.wav"
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes((clip(word, draw) * 32767).astype("<i2").tobytes())
            if i >= train:
                listed.append(f"{word}/{path.name}")
    (folder / "testing_list.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    return folder
