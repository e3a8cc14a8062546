"""Calibration samples: from the training split only, as the recipe says, the same every time."""

import numpy as np
import pytest
import torch

from edgekd.config.schema import Data
from edgekd.data.resolve import load
from edgekd.models.resolve import build
from edgekd.quantize.recipes import RECIPES, Recipe
from edgekd.quantize.samplers import calibration_samples, entropy, evenly, k_center, penultimate


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(Data(), 0, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def models(digits):
    def make(seed):
        return build(
            "zoo:mlp", {"hidden": [12]}, input_shape=(1, 8, 8), classes=10, seed=seed, base=None
        ).eval()

    return make(0), make(1)


@pytest.mark.parametrize("sampler", ["random", "stratified", "entropy", "coreset"])
@pytest.mark.parametrize("samples", [1, 40, 10_000])
def test_every_sampler_takes_training_samples_once_and_repeatably(digits, models, sampler, samples):
    recipe = Recipe(name="r", sampler=sampler, samples=samples)
    chosen = calibration_samples(recipe, digits, *models)
    assert np.array_equal(chosen, calibration_samples(recipe, digits, *models))
    assert set(chosen) <= set(digits.train)
    assert len(set(chosen)) == len(chosen)
    if samples < 1000:
        assert len(chosen) <= max(samples, 10)
    else:
        assert len(chosen) == len(digits.train)


def test_stratified_keeps_the_shares_of_the_classes(digits, models):
    recipe = Recipe(name="r", sampler="stratified", samples=300)
    chosen = calibration_samples(recipe, digits, *models)
    counts = np.bincount(digits.labels[chosen])
    assert counts.sum() == 300
    assert counts.max() - counts.min() <= 3


def test_entropy_is_that_of_the_softmax():
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [1.0, 0.0]])
    p = 1 / (1 + np.exp(-1))
    expected = [np.log(2), 0, -(p * np.log(p) + (1 - p) * np.log(1 - p))]
    assert np.allclose(entropy(logits), expected)


def test_evenly_spans_all_ranks():
    values = np.random.default_rng(0).normal(size=100)
    ranks = np.sort(np.argsort(np.argsort(values))[evenly(values, 4)])
    assert ranks.tolist() == [0, 33, 66, 99]


def test_k_center_covers_within_twice_the_best_radius():
    points = np.random.default_rng(1).normal(size=(9, 2))

    def radius(centres):
        return np.linalg.norm(points[:, None] - points[None, list(centres)], axis=2).min(1).max()

    from itertools import combinations

    best = min(radius(c) for c in combinations(range(9), 3))
    assert radius(k_center(points, 3)) <= 2 * best
    assert len(set(k_center(np.zeros((5, 2)), 5))) == 5


def test_penultimate_features_are_what_the_last_linear_layer_gets(digits, models):
    model = models[1]
    found = penultimate(model, digits, digits.train[:300])
    with torch.inference_mode():
        expected = model[:-1](digits.tensor(digits.train[:300])).numpy()
    assert np.allclose(found, expected)
    assert not model[-1]._forward_pre_hooks


def test_the_shipped_recipes_can_be_read(tmp_path):
    names = {RECIPES.read(path).name for path in RECIPES.files(tmp_path)}
    assert names >= {"default", "entropy", "coreset", "kl", "mse", "smooth-quant", "weights-int4"}
