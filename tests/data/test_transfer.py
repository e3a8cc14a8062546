"""Transfer sets: which samples, whose labels, and what cannot be one."""

import numpy as np
import pytest

from edgekd.config.schema import Config, Data, Transfer
from edgekd.data.resolve import load
from edgekd.data.transfer import transfer_set
from edgekd.errors import UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(Data(), 0, tmp_path_factory.mktemp("base"))


def made(digits, base=None, **transfer):
    return transfer_set(digits, Transfer(**transfer), Data(), 0, base)


def classes_of(dataset):
    return {dataset.classes[label] for label in dataset.labels[dataset.train] if label >= 0}


def test_classes_are_left_out_of_training_and_of_nothing_else(digits):
    without, only = made(digits, without=["3"]), made(digits, only=["7", "8"])
    assert classes_of(without) == set(digits.classes) - {"3"}
    assert classes_of(only) == {"7", "8"}
    assert len(without.train) == (digits.labels[digits.train] != 3).sum()
    for data in (without, only):
        assert np.array_equal(data.test, digits.test)
        assert np.array_equal(data.validation, digits.validation)
        assert data.classes == digits.classes


def test_a_share_keeps_every_class_by_its_share(digits):
    part = made(digits, share=0.1)
    assert len(part.train) == round(0.1 * len(digits.train))
    assert set(part.train) < set(digits.train)
    counts = np.bincount(part.labels[part.train])
    expected = np.bincount(digits.labels[digits.train]) * 0.1
    assert np.abs(counts - expected).max() <= 1
    assert np.array_equal(part.train, made(digits, share=0.1).train)


def test_labels_are_kept_of_a_share_only_and_those_of_the_held_out_splits_stay(digits):
    part = made(digits, labels=0.03)
    told = part.labels[part.train] >= 0
    assert told.sum() == round(0.03 * len(digits.train))
    assert np.array_equal(part.labels[part.train][told], digits.labels[part.train][told])
    for split in ("validation", "test"):
        indices = getattr(digits, split)
        assert np.array_equal(part.labels[indices], digits.labels[indices])
    assert (made(digits, labels=0.0).labels[digits.train] == -1).all()


def test_unlabelled_samples_are_added_whatever_labels_they_have(digits, tmp_path):
    more = np.random.default_rng(0).integers(0, 17, (50, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "more.npz", x=more, y=np.arange(50) % 2)
    with pytest.raises(UsageError, match="scale 255; the data has uint8 of"):
        made(digits, tmp_path, unlabelled="npz:more.npz")
    found = made(digits, tmp_path, unlabelled="digits")
    new = np.setdiff1d(found.train, digits.train)
    assert len(new) == len(digits.labels)
    assert (found.labels[new] == -1).all()
    assert np.array_equal(found.inputs[new], digits.inputs)
    assert np.array_equal(found.tensor(found.test), digits.tensor(digits.test))


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"without": ["eleven"]}, "unknown class 'eleven'"),
        ({"without": [str(c) for c in range(10)]}, "leaves 0 samples"),
        ({"unlabelled": "npz:none.npz"}, r"unlabelled npz:none.npz.*no such file"),
    ],
)
def test_what_cannot_be_made_says_why(digits, tmp_path, transfer, message):
    with pytest.raises(UsageError, match=message) as caught:
        made(digits, tmp_path, **transfer)
    assert "distill.transfer" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transfer": {"without": ["1"], "only": ["2"]}}, "without or only, not both"),
        ({"transfer": {"labels": 0.5}, "methods": ["kd", "dkd"]}, "dkd needs the label of every"),
        ({"transfer": {"labels": 0.5}, "methods": ["crd"]}, "crd needs the label of every"),
        ({"transfer": {"labels": 0.5}, "methods": [], "alpha": 1.0}, "no method teaches them"),
        ({"transfer": {"labels": 0.0}}, "set alpha to 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"distill": config})


def test_mixing_samples_without_labels_is_refused():
    sections = {"data": {"augment": {"mixup": 1.0}}, "distill": {"transfer": {"labels": 0.5}}}
    with pytest.raises(ValueError, match="mixup and cutmix mix labels"):
        Config.model_validate(sections)
