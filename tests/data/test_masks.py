"""Pictures with masks, and every way they can be broken."""

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.config.schema import Augment, Data
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.errors import UsageError

RANDOM = np.random.default_rng(0)
CLASSES = "sky\nroad\ncar\n"


def write(folder, count=20, size=(8, 10), splits=("",), palette=False):
    (folder / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text(CLASSES)
    for split in splits:
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            mask = RANDOM.integers(0, 3, size, dtype=np.uint8)
            mask[0, 0] = 255
            picture = np.stack([mask % 255 * 40] * 3, axis=-1)
            Image.fromarray(picture).save(folder / split / f"images/{i}.png")
            image = Image.fromarray(mask)
            if palette:
                image.putpalette(list(range(256)) * 3)
            image.save(folder / split / f"masks/{i}.png")


def read(folder, **options):
    return load(Data(source=f"masks:{folder.name}", **options), 0, folder.parent)


def refused(folder, **options):
    with pytest.raises(UsageError) as caught:
        read(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("palette", [False, True])
def test_pictures_and_the_classes_of_their_pixels(tmp_path, palette):
    folder = tmp_path / "d"
    write(folder, palette=palette)
    dataset = read(folder)
    assert (dataset.task, dataset.classes) == ("segmentation", ("sky", "road", "car"))
    assert dataset.inputs.shape == (20, 3, 8, 10)
    assert (dataset.labels[:, 0, 0] == -1).all()
    # A picture's grey is its class times 40.
    inside = dataset.labels >= 0
    assert (dataset.inputs[:, 0][inside] == dataset.labels[inside] * 40).all()


def test_a_class_that_no_pixel_is_of_is_told(tmp_path):
    write(tmp_path / "d")
    for path in (tmp_path / "d/masks").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == 2, 255, values).astype(np.uint8)).save(path)
    message = refused(tmp_path / "d")
    assert "no pixel of any mask is of class 'car', and some are 255" in message
    assert "a mask of 0 and 255 is one of 0 and 1" in message


def test_a_test_split_of_its_own(tmp_path):
    write(tmp_path / "d", splits=("train", "test"))
    dataset = read(tmp_path / "d")
    assert [dataset.ids[i].split("/")[0] for i in dataset.test] == ["test"] * 20


def test_masks_are_resized_to_the_nearest_pixel(tmp_path):
    write(tmp_path / "d")
    dataset = read(tmp_path / "d", image_size=(16, 20))
    whole = read(tmp_path / "d")
    np.testing.assert_array_equal(dataset.labels[:, ::2, ::2], whole.labels)
    np.testing.assert_array_equal(dataset.labels[:, 1::2, 1::2], whole.labels)


def test_labels_move_with_the_pixels_of_a_view(tmp_path):
    write(tmp_path / "d")
    dataset = read(tmp_path / "d", mean=[0, 0, 0], std=[1, 1, 1])
    views = Views(dataset, Augment(crop=2, flip=True, views=5), 0)
    for view in range(5):
        x, labels = views.batch(dataset.train, view), views.labels(dataset.train, view)
        inside = labels >= 0
        assert labels.dtype == torch.int64
        torch.testing.assert_close(x[:, 0][inside] * 255, labels[inside].float() * 40)
    assert (views.labels(dataset.train, 1) != views.labels(dataset.train, 2)).any()


def test_mixing_pixels_is_refused(tmp_path):
    from edgekd.config.schema import Config
    from edgekd.tasks.check import check_task

    config = Config.model_validate(
        {"data": {"augment": {"cutmix": 1.0}}, "distill": {"methods": ["kd"]}}
    )
    with pytest.raises(UsageError, match="mixup and cutmix is for classification"):
        check_task(config, "segmentation", ())


def spoil_mask(folder, array, mode=None):
    Image.fromarray(array, mode).save(folder / "masks/3.png")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda d: (d / "masks/3.png").unlink(), "images/3.png: has no mask"),
        (lambda d: (d / "classes.txt").unlink(), "classes.txt: no such file"),
        (lambda d: (d / "train/images").mkdir(parents=True), "has train/images/ and no test/images/"),
        (lambda d: (d / "classes.txt").write_text("a\n\nb\n"), "classes.txt:2"),
        (lambda d: (d / "classes.txt").write_text("a\nb\na\n"), "classes.txt:3"),
        (lambda d: (d / "classes.txt").write_text("a\n"), "names 1 classes"),
        (lambda d: (d / "classes.txt").write_text("a\nb\n"), "has class 2, and classes.txt names 2"),
        (lambda d: (d / "classes.txt").write_bytes(b"\xff\xfe"), "not text in UTF-8"),
        (lambda d: spoil_mask(d, np.zeros((8, 9), np.uint8)), "is 8×9 pixels, its image 8×10"),
        (lambda d: spoil_mask(d, np.zeros((8, 10, 3), np.uint8)), "is a picture of mode RGB"),
        (lambda d: (d / "masks/3.png").write_bytes(b"no"), "cannot be read"),
        (lambda d: [p.unlink() for p in (d / "images").iterdir()], "has no PNG or JPEG image"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_with_its_file(tmp_path, spoil, told):
    folder = tmp_path / "d"
    write(folder)
    spoil(folder)
    assert told in refused(folder)
