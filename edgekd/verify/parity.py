"""Numerical parity: does the exported file compute the function that was trained?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgekd.errors import StageError


@dataclass(frozen=True)
class Errors:
    """How far apart two sets of logits are.

    `max_abs` is max|Δ|; `max_relative` is max|Δ| / max|reference|, so that logits near zero do
    not blow it up; `snr` is 10·log10(Σ reference² / Σ Δ²) in dB, None when they are equal;
    `cosine` is the least cosine over the samples; `agreement` the share of samples, or pixels,
    with the same top-1 answer.
    """

    max_abs: float
    max_relative: float
    snr: float | None
    cosine: float
    agreement: float


def compare(reference: np.ndarray, result: np.ndarray, *, where: str, scale: float = 0.0) -> Errors:
    """Compare logits (n, classes, …) with the reference's, in float64.

    `scale` is the least that the largest reference is taken for. Raises StageError when the shapes
    differ or the result is not finite.
    """
    if reference.shape != result.shape:
        raise StageError(
            f"gives logits of shape {result.shape} where PyTorch gives {reference.shape}",
            where=where,
        )
    if not np.isfinite(result).all():
        count = int((~np.isfinite(result)).reshape(len(result), -1).any(axis=1).sum())
        raise StageError(
            f"gives logits that are not finite where PyTorch's are ({count} of {len(result)} samples)",
            where=where,
        )
    a, b = reference.astype(np.float64), result.astype(np.float64)
    difference = np.abs(a - b).max()
    scale = max(np.abs(a).max(), scale, np.finfo(np.float32).tiny)
    flat = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(flat[0], axis=1) * np.linalg.norm(flat[1], axis=1)
    cosines = (flat[0] * flat[1]).sum(axis=1)[norms > 0] / norms[norms > 0]
    return Errors(
        max_abs=float(difference),
        max_relative=float(difference / scale),
        snr=_snr(a, a - b),
        cosine=float(np.clip(cosines.min(), -1, 1)) if cosines.size else 1.0,
        agreement=float((a.argmax(1) == b.argmax(1)).mean()),
    )


def relative(reference: np.ndarray, result: np.ndarray) -> tuple[float | None, float | None]:
    """max|Δ| / max|reference| and SNR in dB of tensors of any one shape, in float64.

    The first is None where the result is not finite.
    """
    a, b = reference.astype(np.float64), result.astype(np.float64)
    if not np.isfinite(b).all():
        return None, None
    scale = max(np.abs(a).max(initial=0), np.finfo(np.float32).tiny)
    return float(np.abs(a - b).max(initial=0) / scale), _snr(a, a - b)


def worst(*errors: Errors) -> Errors:
    """The largest errors, the least SNR, cosine and agreement of several comparisons."""
    ratios = [e.snr for e in errors if e.snr is not None]
    return Errors(
        max_abs=max(e.max_abs for e in errors),
        max_relative=max(e.max_relative for e in errors),
        snr=min(ratios, default=None),
        cosine=min(e.cosine for e in errors),
        agreement=min(e.agreement for e in errors),
    )


def _snr(signal: np.ndarray, noise: np.ndarray) -> float | None:
    power, error = float((signal**2).sum()), float((noise**2).sum())
    return 10 * math.log10(power / error) if power > 0 and error > 0 else None
