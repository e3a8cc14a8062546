"""Views: one augmentation of one sample, a pure function of (seed, sample index, view number).

Nothing depends on the batch a sample is in, the order of the epoch or the number of workers, so
that the teacher and the student see the same view and a cached answer stays valid. A batch is made
at once, on the device that the data lies on.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.config.schema import Augment
from edgekd.data.resolve import Dataset
from edgekd.errors import UsageError

# What each random draw of a sample is for; the order is part of what a view is.
DOWN, RIGHT, MIRRORED, BRIGHT, CONTRAST, SATURATION, PARTNER, SHARE, ROW, COLUMN, KIND = range(11)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_QUANTILES = 1 << 16


class Views:
    """`count` views of every sample of a data set, made and returned on `device`."""

    def __init__(
        self, dataset: Dataset, augment: Augment, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        images = augment.crop > 0 or augment.flip or augment.colour > 0 or augment.cutmix > 0
        if images and dataset.inputs.ndim != 4:
            raise UsageError(
                "crop, flip, colour and cutmix are for images; "
                f"these inputs have the shape {dataset.input.shape}",
                where="data.augment",
            )
        self.sound = dataset.front_end is not None
        if self.sound and (augment.flip or augment.colour > 0):
            raise UsageError(
                "flip and colour are for pictures: a spectrogram has frequencies from low to high, and "
                "logarithms of energies",
                where="data.augment",
            )
        self.dataset, self.augment, self.seed = dataset, augment, seed
        # Labels of pixels move with them.
        self.moves = dataset.labels.ndim == 3 and bool(augment.crop or augment.flip)
        self.mixes = augment.mixup > 0 or augment.cutmix > 0
        self.tokens = dataset.input.tokens
        if self.tokens is not None and self.mixes:
            raise UsageError("mixup is for values; token ids cannot be mixed", where="data.augment")
        # Without augmentation all views are one: the teacher need not answer twice.
        self.count = augment.views if images or self.mixes else 1
        self.device = torch.device(device)
        if self.tokens is None:
            self._gain, self._offset = dataset.gain_and_offset(self.device)

    def on(self, device: torch.device | str) -> Views:
        """The same views, made on `device`."""
        if torch.device(device) == self.device:
            return self
        return Views(self.dataset, self.augment, self.seed, device)

    # Lie on the device, if there is one; on the CPU nothing is copied.
    @cached_property
    def _inputs(self) -> Tensor:
        return torch.from_numpy(self.dataset.inputs).to(self.device)

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self.dataset.labels).to(self.device)

    @cached_property
    def _train(self) -> Tensor:
        return torch.from_numpy(self.dataset.train).to(self.device)

    def batch(self, indices: np.ndarray | Tensor, view: int) -> Tensor:
        """View `view` of the samples `indices`, normalised float32 (n, *input.shape); ids as int64."""
        samples = torch.as_tensor(indices, device=self.device)
        own = self._single(samples, view)
        if not self.mixes:
            return own
        partner, weight = self._mixture(samples, view)
        return own.mul_(weight).addcmul_(self._single(partner, view), 1 - weight)

    def labels(self, indices: np.ndarray | Tensor, view: int) -> Tensor:
        """The labels (n, …) of each view; where two samples are mixed, of the larger share."""
        samples = torch.as_tensor(indices, device=self.device)
        own = self._labels[samples]
        if own.ndim == 3:
            own = own.long()
        if self.moves:
            return self._cropped(own[:, None], samples, view, outside=-1)[:, 0]
        if not self.mixes:
            return own
        partner, weight = self._mixture(samples, view)
        return torch.where(_share(weight) >= 0.5, own, self._labels[partner])

    def targets(self, indices: np.ndarray | Tensor, view: int) -> Tensor | None:
        """(n, classes) shares of the classes in each view, or None where no samples are mixed."""
        if not self.mixes:
            return None
        samples = torch.as_tensor(indices, device=self.device)
        partner, weight = self._mixture(samples, view)
        share = _share(weight)[:, None]
        one_hot = torch.eye(len(self.dataset.classes), device=self.device)
        return share * one_hot[self._labels[samples]] + (1 - share) * one_hot[self._labels[partner]]

    def _single(self, samples: Tensor, view: int) -> Tensor:
        """The view before it is mixed with another."""
        raw = self._inputs[samples]
        if self.tokens is not None:
            return raw.to(torch.int64)
        if self.augment.crop or self.augment.flip:
            raw = self._cropped(raw, samples, view)
        values = raw.to(torch.float32)
        if self.augment.colour:
            values = self._jittered(values / self.dataset.input.scale, samples, view)
            values = values * self.dataset.input.scale
        return values.mul(self._gain).add_(self._offset)

    def _cropped(self, raw: Tensor, samples: Tensor, view: int, outside: int = 0) -> Tensor:
        """Shifted by up to `crop` pixels, black (or `outside`) coming in, and mirrored."""
        n, channels, height, width = raw.shape
        crop = self.augment.crop
        shifts = 2 * crop + 1
        rows = self._bits(samples, view, DOWN)[:, None] % shifts + self._range(height)
        columns = self._bits(samples, view, RIGHT)[:, None] % shifts + self._range(width)
        if self.augment.flip:
            mirrored = (self._bits(samples, view, MIRRORED) & 1).bool()
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        # The nearest values come into a spectrogram: 0 is loud there.
        around = {"mode": "replicate"} if self.sound else {"value": outside}
        padded = F.pad(raw, (crop, crop, crop, crop), **around)
        return padded[
            self._range(n)[:, None, None, None],
            self._range(channels)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def _jittered(self, x: Tensor, samples: Tensor, view: int) -> Tensor:
        """Brightness, contrast, then saturation, each by a factor in 1 ± `colour`; x is in [0, 1]."""

        def factor(draw: int) -> Tensor:
            uniform = self._bits(samples, view, draw).to(torch.float32) / 2**32
            return (1 + self.augment.colour * (2 * uniform - 1))[:, None, None, None]

        x = (x * factor(BRIGHT)).clamp_(0, 1)
        mean = _grey(x).mean((1, 2, 3), keepdim=True)
        x = torch.lerp(mean.expand_as(x), x, factor(CONTRAST)).clamp_(0, 1)
        if x.shape[1] != 3:
            return x
        return torch.lerp(_grey(x).expand_as(x), x, factor(SATURATION)).clamp_(0, 1)

    def _mixture(self, samples: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """Each sample's partner (n,), from the training split, and its own weight at every value.

        The weights are (n, 1, …) for mixup (Zhang 2018: λ), (n, 1, height, width) of zeros and ones
        for cutmix (Yun 2019: the mask M); λ ~ Beta(α, α), for half of the samples where both are on.
        """
        partner = self._train[self._bits(samples, view, PARTNER) % len(self._train)]
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        uniform = self._bits(samples, view, SHARE) >> 16
        around = (1,) * (self.dataset.inputs.ndim - 1)
        blended = _beta(mixup, self.device)[uniform].view(-1, *around) if mixup else None
        pasted = self._mask(samples, view, _beta(cutmix, self.device)[uniform]) if cutmix else None
        if blended is not None and pasted is not None:
            odd = (self._bits(samples, view, KIND) & 1).bool().view(-1, *around)
            return partner, torch.where(odd, blended, pasted)
        weight = blended if pasted is None else pasted
        assert weight is not None
        return partner, weight

    def _mask(self, samples: Tensor, view: int, share: Tensor) -> Tensor:
        """Zeros in a box of √(1−λ) of either side around a uniform centre, cut off at the edges."""
        height, width = self.dataset.inputs.shape[2:]
        side = (1 - share).sqrt()

        def inside(draw: int, size: int) -> Tensor:
            centre = self._bits(samples, view, draw) % size
            half = (side * size / 2).to(torch.int64)
            return (self._range(size) - centre[:, None] + half[:, None]).ge(0) & (
                self._range(size) - centre[:, None] - half[:, None]
            ).lt(0)

        box = inside(ROW, height)[:, None, :, None] & inside(COLUMN, width)[:, None, None, :]
        return (~box).to(torch.float32)

    def _bits(self, samples: Tensor, view: int, draw: int) -> Tensor:
        return random_bits(self.seed, samples, view, draw)

    def _range(self, size: int) -> Tensor:
        return torch.arange(size, device=self.device)


def random_bits(seed: int, samples: np.ndarray | Tensor, view: int, draw: int) -> Tensor:
    """32 random bits per sample, as int64 in [0, 2³²), from nothing but the arguments.

    SplitMix64's finaliser (Steele, Lea, Flood 2014) over one argument after the other.
    """
    samples = torch.as_tensor(samples).to(torch.int64)
    state = torch.zeros_like(samples)
    for word in (seed, samples, view, draw):
        state = _mix((state ^ word) + _signed(0x9E3779B97F4A7C15))
    return _shifted(state, 32)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits: its sums and products wrap around as those of uint64."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right; that of int64 would bring in the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _beta(alpha: float, device: torch.device) -> Tensor:
    """Quantiles of Beta(α, α) at the middles of 2¹⁶ equal shares."""
    key = (alpha, str(device))
    if key not in _TABLES:
        from scipy.special import betaincinv

        middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        values = betaincinv(alpha, alpha, middles).astype(np.float32)
        _TABLES[key] = torch.from_numpy(values).to(device)
    return _TABLES[key]


_TABLES: dict[tuple[float, str], Tensor] = {}


def _share(weight: Tensor) -> Tensor:
    """The sample's own share of its view: λ, or the area that cutmix left it."""
    return weight.flatten(1).mean(1)


def _grey(x: Tensor) -> Tensor:
    """Luma (n, 1, h, w) of colour images; the mean of any other number of channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return _GREY[0] * x[:, :1] + _GREY[1] * x[:, 1:2] + _GREY[2] * x[:, 2:]
