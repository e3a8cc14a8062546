"""Transfer sets: which samples, whose labels, and what cannot be one."""

import numpy as np
import pytest
from PIL import Image

from edgekd.config.schema import Config, Data, Transfer
from edgekd.data.resolve import load, unlabelled_fingerprint
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


IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "data.npz", x=IMAGES, y=np.arange(60) % 3)
    return load(Data(source="npz:data.npz"), 0, tmp_path)


def write_images(folder, *places):
    for place, image in zip(places, IMAGES, strict=False):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / place)


def test_without_labels_an_archive_needs_x_alone_and_images_no_folders_of_classes(images, tmp_path):
    np.savez(tmp_path / "x.npz", x=IMAGES[:3])
    np.savez(tmp_path / "parts.npz", x_train=IMAGES[:2], x_test=IMAGES[2:3])
    write_images(tmp_path / "loose", "a.png", "b.png", "c.png")
    write_images(tmp_path / "sorted", "cat/a.png", "cat/more/b.png", "dog/c.png")
    for source in ("npz:x.npz", "npz:parts.npz", "folder:loose", "folder:sorted"):
        found = made(images, tmp_path, unlabelled=source)
        new = np.setdiff1d(found.train, images.train)
        assert np.array_equal(found.inputs[new], IMAGES[:3, None]), source
        assert (found.labels[new] == -1).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("npz:none.npz", "no such file: .*none.npz"),
        ("npz:y.npz", "holds the arrays y\n  should hold x"),
        ("npz:empty.npz", "has no samples"),
        ("npz:large.npz", r"has uint8 samples of shape \(1, 9, 9\).*data has uint8 of \(1, 8, 8\)"),
        ("npz:two.npz", "x_train and x_test have samples of two forms"),
        ("folder:empty", "has no PNG or JPEG image"),
        ("digist", "did you mean 'digits'"),
    ],
)
def test_unlabelled_samples_that_cannot_be_used_are_refused_by_their_own_key(
    images, tmp_path, source, message
):
    np.savez(tmp_path / "y.npz", y=IMAGES)
    np.savez(tmp_path / "empty.npz", x=IMAGES[:0])
    np.savez(tmp_path / "large.npz", x=np.zeros((3, 9, 9), np.uint8))
    np.savez(tmp_path / "two.npz", x_train=IMAGES, x_test=IMAGES[:, :7])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        unlabelled_fingerprint(source, Data(), tmp_path)
        made(images, tmp_path, unlabelled=source)
    assert "distill.transfer.unlabelled" in str(caught.value)
    assert "data.source" not in str(caught.value)


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"without": ["eleven"]}, "unknown class 'eleven'"),
        ({"without": [str(c) for c in range(10)]}, "leaves 0 samples"),
        ({"unlabelled": "npz:none.npz"}, r"unlabelled npz:none.npz.*no such file"),
        ({"labels": 0.0001}, r"distill.transfer.labels: 0.0001 of \d+ samples is none"),
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
        ({"transfer": {"only": []}}, "only\n.*at least 1 item"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"distill": config})


def test_mixing_samples_without_labels_is_refused():
    sections = {"data": {"augment": {"mixup": 1.0}}, "distill": {"transfer": {"labels": 0.5}}}
    with pytest.raises(ValueError, match="mixup and cutmix mix labels"):
        Config.model_validate(sections)
