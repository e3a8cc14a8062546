"""Splits, normalisation and views."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekd.config.schema import Augment, Data
from edgekd.data.resolve import load
from edgekd.data.splits import take
from edgekd.data.views import Views, random_bits
from edgekd.errors import UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(Data(), 0, tmp_path_factory.mktemp("base"))


def test_the_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert np.array_equal(digits.inputs[:, 0], bunch.images)
    assert np.array_equal(digits.labels, bunch.target)
    assert digits.classes == tuple(map(str, bunch.target_names))


def shares(labels):
    return np.bincount(labels, minlength=10) / len(labels)


class TestSplits:
    def test_they_are_disjoint_whole_stratified_and_of_the_configured_sizes(self, digits):
        parts = (digits.train, digits.validation, digits.test)
        assert sorted(np.concatenate(parts)) == list(range(1797))
        assert len(digits.test) == round(0.3 * 1797)
        assert len(digits.validation) == round(0.1 * (1797 - 539))
        for part in parts:
            assert np.abs(shares(digits.labels[part]) - shares(digits.labels)).max() < 0.01

    def test_the_same_seed_gives_the_same_split_and_another_seed_another(self, digits, tmp_path):
        again, other = load(Data(), 0, tmp_path), load(Data(), 1, tmp_path)
        assert np.array_equal(again.test, digits.test)
        assert not np.array_equal(other.test, digits.test)

    def test_the_limit_holds_for_both_and_keeps_every_class(self, digits, tmp_path):
        small = load(Data(limit=60), 0, tmp_path)
        assert len(small.train) + len(small.validation) == 60
        assert len(small.test) == 60
        for part in (small.train, small.validation, small.test):
            assert set(small.labels[part]) == set(range(10))
        assert set(small.test) <= set(digits.test)

    def test_a_limit_below_two_per_class_says_what_would_do(self, tmp_path):
        np.savez(tmp_path / "many.npz", x=np.zeros((300, 2)), y=np.arange(300) % 30)
        with pytest.raises(UsageError, match=r"data\.limit.*\n.*60 or more"):
            load(Data(source="npz:many.npz", limit=40), 0, tmp_path)

    @given(
        sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8),
        share=st.floats(0.05, 0.95),
        seed=st.integers(0, 5),
    )
    def test_a_stratified_subset_never_loses_a_class_nor_exceeds_it(self, sizes, share, seed):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        among, count = np.arange(len(labels)), max(len(sizes), round(share * len(labels)))
        chosen = take(labels, among, count, seed, "test")
        assert len(set(chosen)) == len(chosen) == min(count, len(labels))
        assert set(labels[chosen]) == set(labels)


class TestNormalisation:
    def test_it_makes_the_training_split_zero_mean_and_unit_variance(self, digits):
        train = digits.tensor(digits.train)
        assert train.dtype == torch.float32
        assert train.mean().abs() < 1e-5
        assert abs(train.std(correction=0) - 1) < 1e-5

    def test_it_is_the_formula_that_the_model_card_states(self, digits):
        raw = digits.inputs[:5].astype(np.float64)
        expected = (raw / digits.input.scale - digits.input.mean[0]) / digits.input.std[0]
        assert np.abs(digits.tensor(np.arange(5)).numpy() - expected).max() < 1e-6

    def test_a_given_normalisation_is_used_and_must_fit(self, tmp_path):
        data = load(Data(mean=[0.5], std=[0.25]), 0, tmp_path)
        assert (data.input.mean, data.input.std) == ((0.5,), (0.25,))
        with pytest.raises(UsageError, match=r"data\.mean: has 3 values for inputs of 1 channels"):
            load(Data(mean=[0.5] * 3, std=[0.25] * 3), 0, tmp_path)
        with pytest.raises(ValueError, match="both mean and std"):
            Data(mean=[0.5])

    def test_a_feature_that_never_changes_stays_finite(self, tmp_path):
        x = np.random.default_rng(0).normal((0, 0, 1000), size=(30, 3))
        x[:, 1] = 1e4
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(30) % 2)
        data = load(Data(source="npz:a.npz"), 0, tmp_path)
        assert data.input.std[1] == 1
        assert torch.isfinite(data.tensor(data.train)).all()


def reference_view(image, down, right, flip, crop):
    """Pad, cut and mirror one image (channels, h, w), pixel by pixel."""
    _, height, width = image.shape
    view = np.zeros_like(image)
    for r in range(height):
        for c in range(width):
            y, x = r + down - crop, (width - 1 - c if flip else c) + right - crop
            if 0 <= y < height and 0 <= x < width:
                view[:, r, c] = image[:, y, x]
    return view


class TestViews:
    def test_each_is_the_padded_cropped_mirrored_image(self, digits):
        views, samples = Views(digits, Augment(crop=2, flip=True), 3), np.array([5, 0, 700])
        batch = views.batch(samples, 6).numpy()
        for row, sample in enumerate(samples):
            down, right, flip = (
                int(random_bits(3, np.array([sample]), 6, draw)[0]) for draw in range(3)
            )
            expected = reference_view(digits.inputs[sample], down % 5, right % 5, flip & 1, 2)
            assert np.array_equal(batch[row], digits.normalise(expected[None])[0].numpy())

    def test_it_depends_on_seed_sample_and_view_only(self, digits):
        views = Views(digits, Augment(crop=1, flip=True), 0)
        whole = views.batch(np.arange(50), 2)
        assert torch.equal(whole[[7]], views.batch(np.array([7]), 2))
        assert torch.equal(whole[30:], views.batch(torch.arange(30, 50), 2))
        assert not torch.equal(whole, views.batch(np.arange(50), 3))
        other = Views(digits, Augment(crop=1, flip=True), 1)
        assert not torch.equal(whole, other.batch(np.arange(50), 2))

    def test_without_augmentation_there_is_one_view_and_it_is_the_sample(self, digits):
        views = Views(digits, Augment(views=8), 0)
        assert views.count == 1
        assert torch.equal(views.batch(digits.test, 0), digits.tensor(digits.test))

    def test_shifts_and_flips_are_uniform_and_independent(self):
        samples = np.arange(30_000)
        down, right, flip = (random_bits(0, samples, 1, draw) for draw in range(3))
        counts = np.zeros((3, 3, 2))
        np.add.at(counts, (down % 3, right % 3, flip & 1), 1)
        expected = len(samples) / 18
        assert ((counts - expected) ** 2 / expected).sum() < 40.8  # χ² of 17 degrees, 0.1 %

    def test_padding_is_the_raw_zero_after_normalisation(self, digits):
        views = Views(digits, Augment(crop=8), 0)
        black = digits.normalise(np.zeros((1, 1, 1, 1), np.uint8)).item()
        assert (views.batch(np.arange(20), 0) == black).any()
        assert views.batch(np.arange(20), 0).min() == pytest.approx(black)

    def test_flat_inputs_cannot_be_cropped(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.eye(30), y=np.arange(30) % 2)
        data = load(Data(source="npz:a.npz"), 0, tmp_path)
        assert Views(data, Augment(), 0).batch(data.train, 0).shape == (len(data.train), 30)
        with pytest.raises(UsageError, match=r"data\.augment"):
            Views(data, Augment(crop=1), 0)
