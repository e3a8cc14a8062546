"""Colour, mixup and cutmix against one image, pixel and hash at a time; and what they are keyed by."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from edgekd.config.schema import Augment, Data
from edgekd.data.resolve import load
from edgekd.data.views import (
    BRIGHT,
    COLUMN,
    CONTRAST,
    KIND,
    PARTNER,
    ROW,
    SATURATION,
    SHARE,
    Views,
    random_bits,
)  # fmt: skip
from edgekd.errors import UsageError


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (60, 3, 6, 8), dtype=np.uint8)
    np.savez(base / "a.npz", x=x, y=np.arange(60) % 3)
    return load(Data(source="npz:a.npz"), 0, base)


def splitmix(seed, sample, view, draw):
    """With Python's unbounded integers."""
    mask, state = (1 << 64) - 1, 0
    for word in (seed, sample, view, draw):
        z = ((state ^ word) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        state = z ^ (z >> 31)
    return state >> 32


def test_the_random_bits_are_those_of_splitmix64():
    samples = [0, 1, 7, 49_999, 2**40]
    for seed, view, draw in ((0, 0, 0), (3, 5, 2), (2**31 - 1, 999, 10)):
        found = random_bits(seed, torch.tensor(samples), view, draw).tolist()
        assert found == [splitmix(seed, sample, view, draw) for sample in samples]


def jittered(image, amount, bits):
    """(3, h, w) in [0, 1], as the three definitions say."""
    bright, contrast, saturation = (1 + amount * (2 * b / 2**32 - 1) for b in bits)

    def grey(x):
        return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]

    x = np.clip(image * bright, 0, 1)
    x = np.clip(grey(x).mean() + (x - grey(x).mean()) * contrast, 0, 1)
    return np.clip(grey(x) + (x - grey(x)) * saturation, 0, 1)


def test_colour_is_brightness_contrast_and_saturation_of_one_image_after_the_other(colour):
    batch = Views(colour, Augment(colour=0.6), 4).batch(np.arange(20), 3).double().numpy()
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (colour.input.mean, colour.input.std))
    for i in range(20):
        bits = (splitmix(4, i, 3, draw) for draw in (BRIGHT, CONTRAST, SATURATION))
        expected = jittered(colour.inputs[i] / 255, 0.6, bits)
        assert np.allclose(batch[i] * std + mean, expected, atol=1e-5)


def lam(alpha, bits):
    return beta(alpha, alpha).ppf(((bits >> 16) + 0.5) / 2**16)


def partner_of(data, seed, sample, view):
    return int(data.train[splitmix(seed, sample, view, PARTNER) % len(data.train)])


def test_mixup_blends_the_partners_own_view_and_its_label(colour):
    views = Views(colour, Augment(crop=2, flip=True, mixup=0.4), 1)
    plain = Views(colour, Augment(crop=2, flip=True), 1)
    samples = np.arange(30)
    batch, targets = views.batch(samples, 5), views.targets(samples, 5)
    labels = views.labels(samples, 5)
    for i in samples:
        j, share = partner_of(colour, 1, int(i), 5), lam(0.4, splitmix(1, int(i), 5, SHARE))
        expected = share * plain.batch([i], 5)[0] + (1 - share) * plain.batch([j], 5)[0]
        assert torch.allclose(batch[i], expected, atol=1e-5)
        target = np.zeros(3)
        target[colour.labels[i]] += share
        target[colour.labels[j]] += 1 - share
        assert np.allclose(targets[i], target, atol=1e-6)
        assert labels[i] == colour.labels[i if share >= 0.5 else j]


def test_cutmix_pastes_a_box_and_the_label_follows_the_area(colour):
    views, plain = Views(colour, Augment(cutmix=1.0), 1), Views(colour, Augment(), 1)
    samples = np.arange(30)
    batch, targets = views.batch(samples, 2), views.targets(samples, 2)
    _, height, width = colour.inputs.shape[1:]
    for i in samples:
        j, share = partner_of(colour, 1, int(i), 2), lam(1.0, splitmix(1, int(i), 2, SHARE))
        row, column = (
            splitmix(1, int(i), 2, ROW) % height, splitmix(1, int(i), 2, COLUMN) % width,
        )  # fmt: skip
        down, right = (int(math.sqrt(1 - share) * size / 2) for size in (height, width))
        expected, own = plain.batch([i], 0)[0].clone(), 0
        other = plain.batch([j], 0)[0]
        for y in range(height):
            for x in range(width):
                if row - down <= y < row + down and column - right <= x < column + right:
                    expected[:, y, x] = other[:, y, x]
                else:
                    own += 1
        assert torch.allclose(batch[i], expected, atol=1e-6)
        target = np.zeros(3)
        target[colour.labels[i]] += own / (height * width)
        target[colour.labels[j]] += 1 - own / (height * width)
        assert np.allclose(targets[i], target, atol=1e-6)


def test_with_both_half_of_the_samples_get_either(colour):
    both = Views(colour, Augment(mixup=0.2, cutmix=1.0), 0)
    samples = np.arange(60)
    x = both.batch(samples, 1)
    mixup = Views(colour, Augment(mixup=0.2), 0).batch(samples, 1)
    cutmix = Views(colour, Augment(cutmix=1.0), 0).batch(samples, 1)
    odd = [splitmix(0, i, 1, KIND) & 1 for i in range(60)]
    assert 15 < sum(odd) < 45
    for i in samples:
        assert torch.equal(x[i], (mixup if odd[i] else cutmix)[i])


def test_the_shares_follow_the_beta_distribution(colour):
    views = Views(colour, Augment(mixup=0.5), 0)
    _, weight = views._mixture(torch.arange(20_000), 0)
    assert kstest(weight.flatten().numpy(), beta(0.5, 0.5).cdf).pvalue > 0.001


@pytest.mark.parametrize("kind", [{"mixup": 0.3}, {"cutmix": 1.0}, {"colour": 0.5}])
def test_a_view_is_the_same_in_any_batch_and_another_in_another_view(colour, kind):
    views = Views(colour, Augment(crop=1, flip=True, **kind), 0)
    whole = views.batch(np.arange(50), 2)
    assert torch.equal(whole[[7]], views.batch(np.array([7]), 2))
    assert torch.equal(whole[30:], views.batch(torch.arange(30, 50), 2))
    assert not torch.equal(whole, views.batch(np.arange(50), 3))
    assert views.count == 8


def test_partners_come_from_the_training_split_only(colour):
    partner, _ = Views(colour, Augment(mixup=1.0), 0)._mixture(torch.arange(60), 0)
    assert set(partner.tolist()) <= set(colour.train.tolist())


def test_flat_inputs_can_be_blended_but_not_pasted_into(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(30), y=np.arange(30) % 2)
    data = load(Data(source="npz:a.npz"), 0, tmp_path)
    assert Views(data, Augment(mixup=1.0), 0).batch(data.train, 0).shape == (len(data.train), 30)
    for image_only in ({"cutmix": 1.0}, {"colour": 0.1}):
        with pytest.raises(UsageError, match=r"data\.augment"):
            Views(data, Augment(**image_only), 0)
