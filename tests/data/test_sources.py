"""Every source against files made here by other means, and every way they can be broken."""

import gzip
import os
import struct

import numpy as np
import pytest
from PIL import Image

from edgekd.config.schema import Data
from edgekd.data.resolve import fingerprint, load
from edgekd.data.source import SOURCES
from edgekd.errors import UsageError


def read(source, base, **options):
    return load(Data(source=source, **options), 0, base)


def refused(source, base, **options):
    """The message of the UsageError that loading raises."""
    with pytest.raises(UsageError) as caught:
        config = Data(source=source, **options)
        fingerprint(config, base)
        load(config, 0, base)
    return str(caught.value)


def idx_bytes(array):
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    header = struct.pack(">HBB", 0, kinds[array.dtype.name], array.ndim)
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return header + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (60, 9, 8), np.uint8), np.arange(60, dtype=np.uint8) % 3


def write_idx(folder, images, labels, zipped=False, test=20):
    folder.mkdir(exist_ok=True)
    parts = {
        "train-images-idx3-ubyte": images[test:], "train-labels-idx1-ubyte": labels[test:],
        "t10k-images-idx3-ubyte": images[:test], "t10k-labels-idx1-ubyte": labels[:test],
    }  # fmt: skip
    for name, array in parts.items():
        data = idx_bytes(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


def write_images(folder, classes=("cat", "dog"), each=6, size=(8, 10), mode="L", suffix=".png"):
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            color = c * 100 + i if mode == "L" else (c * 100, i, 7)
            path = folder / name / f"{i}{suffix}"
            Image.new(mode, (size[1], size[0]), color).save(path)
    return folder


def test_the_sources_are_these():
    assert SOURCES.names() == [
        "audio",
        "csv",
        "digits",
        "folder",
        "idx",
        "masks",
        "npz",
        "text",
        "ts",
    ]


def test_an_unknown_kind_suggests_the_nearest(tmp_path):
    assert "did you mean 'digits'" in refused("digist", tmp_path)


@pytest.mark.parametrize("kind", ["idx", "npz", "folder"])
def test_a_missing_path_is_named(kind, tmp_path):
    message = refused(f"{kind}:nowhere", tmp_path)
    assert "data.source" in message
    assert str(tmp_path / "nowhere") in message
    assert f"{kind}:F" in refused(kind, tmp_path)


def test_a_file_for_a_folder_and_a_folder_for_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert "not a folder" in refused("idx:file", tmp_path)
    assert "not a file" in refused("npz:.", tmp_path)


def test_variables_are_expanded_and_a_missing_one_is_named(tmp_path, images, monkeypatch):
    write_idx(tmp_path / "set", *images)
    monkeypatch.setenv("EDGEKD_TEST_ROOT", str(tmp_path))
    for text in ("idx:$EDGEKD_TEST_ROOT/set", "idx:${EDGEKD_TEST_ROOT}/set", "idx:set"):
        assert len(read(text, tmp_path).labels) == 60
    assert "EDGEKD_NOT_SET" in refused("idx:$EDGEKD_NOT_SET/set", tmp_path)


class TestDigits:
    def test_it_is_the_uci_set(self, tmp_path):
        data = read("digits", tmp_path)
        assert data.inputs.shape == (1797, 1, 8, 8)
        assert data.input.scale == 16
        assert (data.inputs.min(), data.inputs.max()) == (0, 16)
        assert data.classes == tuple("0123456789")

    def test_its_fingerprint_needs_neither_numpy_nor_scikit_learn(self, tmp_path):
        import subprocess
        import sys

        code = (
            "import sys, pathlib; from edgekd.config.schema import Data;"
            "from edgekd.data.resolve import fingerprint; fingerprint(Data(), pathlib.Path());"
            "assert not {'numpy', 'sklearn', 'torch'} & set(sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0

    def test_it_takes_no_path(self, tmp_path):
        assert "no path" in refused("digits:there", tmp_path)


class TestIdx:
    @pytest.mark.parametrize("zipped", [False, True])
    def test_values_labels_and_the_given_test_split(self, tmp_path, images, zipped):
        write_idx(tmp_path / "set", *images, zipped=zipped)
        data = read("idx:set", tmp_path)
        assert np.array_equal(data.inputs[40:, 0], images[0][:20])
        assert np.array_equal(data.labels[:40], images[1][20:])
        assert set(data.test) == set(range(40, 60))
        assert data.input.scale == 255
        assert len(data.train) + len(data.validation) == 40

    def test_labels_of_any_values_and_pixels_of_any_type(self, tmp_path, images):
        write_idx(tmp_path / "set", images[0].astype(np.int16), images[1] * 5 + 1)
        data = read("idx:set", tmp_path)
        assert data.classes == ("1", "6", "11")
        assert data.inputs.dtype == np.float32
        assert np.array_equal(data.inputs[40:, 0], images[0][:20])

    def test_the_plain_file_is_preferred_to_the_same_gzipped(self, tmp_path, images):
        write_idx(tmp_path / "set", *images)
        (tmp_path / "set/train-images-idx3-ubyte.gz").write_bytes(b"stale")
        assert len(read("idx:set", tmp_path).labels) == 60

    def test_two_sets_in_one_folder_are_ambiguous(self, tmp_path, images):
        write_idx(tmp_path / "set", *images)
        (tmp_path / "set/emnist-train-images-idx3-ubyte").write_bytes(b"")
        assert "several files for the train images" in refused("idx:set", tmp_path)

    def test_an_empty_folder_and_a_missing_part(self, tmp_path, images):
        (tmp_path / "set").mkdir()
        assert "empty" in refused("idx:set", tmp_path)
        write_idx(tmp_path / "set", *images)
        (tmp_path / "set/t10k-labels-idx1-ubyte").unlink()
        assert "no file for the test labels" in refused("idx:set", tmp_path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train-images-idx3-ubyte", b"\x89PNG....", "not an IDX file"),
            ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "cut short"),
            ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, "promises"),
            ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\x00", "labels of shape"),
            ("train-images-idx3-ubyte", b"\0\0\x08\x01\0\0\0\x01\x00", "images of shape"),
        ],
    )  # fmt: skip
    def test_a_damaged_file_is_named(self, tmp_path, images, name, content, message):
        write_idx(tmp_path / "set", *images)
        (tmp_path / "set" / name).write_bytes(content)
        text = refused("idx:set", tmp_path)
        assert message in text
        assert "-idx" in text

    def test_a_gzip_cut_short_or_corrupt(self, tmp_path, images):
        write_idx(tmp_path / "set", *images, zipped=True)
        path = tmp_path / "set/train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        for broken in (whole[:-20], whole[:50] + b"????" + whole[54:], b"", b"plain"):
            path.write_bytes(broken)
            assert str(path) in refused("idx:set", tmp_path)

    def test_test_images_of_another_size(self, tmp_path, images):
        write_idx(tmp_path / "set", *images)
        (tmp_path / "set/t10k-images-idx3-ubyte").write_bytes(
            idx_bytes(np.zeros((20, 5, 5), np.uint8))
        )
        assert "(5, 5)" in refused("idx:set", tmp_path)


class TestNpz:
    def save(self, path, **arrays):
        np.savez(path / "data.npz", **arrays)
        return "npz:data.npz"

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((30, 5), (5,)),
            ((30, 9, 8), (1, 9, 8)),
            ((30, 9, 8, 3), (3, 9, 8)),
            ((30, 3, 9, 8), (3, 9, 8)),
            ((30, 9, 8, 1), (1, 9, 8)),
        ],
    )
    def test_layouts(self, tmp_path, shape, expected):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float64)
        data = read(self.save(tmp_path, x=x, y=np.arange(30) % 2), tmp_path)
        assert data.input.shape == expected
        assert data.input.scale == 1
        assert data.inputs.dtype == np.float32
        if len(shape) == 4 and shape[3] in (1, 3):
            assert np.allclose(data.inputs, x.transpose(0, 3, 1, 2))

    def test_given_splits_column_labels_and_class_names(self, tmp_path):
        x, y = np.zeros((30, 4), np.uint8), (np.arange(30) % 2)[:, None]
        source = self.save(
            tmp_path, x_train=x, y_train=y, x_test=x[:10] + 1, y_test=y[:10],
            classes=np.array(["no", "yes"]),
        )  # fmt: skip
        data = read(source, tmp_path)
        assert data.classes == ("no", "yes")
        assert set(data.test) == set(range(30, 40))
        assert data.input.scale == 255

    def test_text_labels_name_the_classes(self, tmp_path):
        y = np.array(["b", "a"] * 15)
        data = read(self.save(tmp_path, x=np.zeros((30, 2)), y=y), tmp_path)
        assert data.classes == ("a", "b")
        assert data.labels[:2].tolist() == [1, 0]

    def test_a_pickle_inside_is_refused_and_not_run(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "executed"),)

        source = self.save(tmp_path, x=np.array([Bomb()] * 30, dtype=object), y=np.arange(30) % 2)
        assert "could run code" in refused(source, tmp_path)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"a": np.zeros(3)}, "holds the arrays a"),
            ({"x": np.zeros((30, 2)), "y": np.zeros(29, int)}, "x has 30 samples, y 29"),
            ({"x": np.zeros((30, 2)), "y": np.zeros(30, complex)}, "integers or text"),
            ({"x": np.zeros(30), "y": np.arange(30) % 2}, "(30,)"),
            ({"x": np.zeros((30, 2), complex), "y": np.arange(30) % 2}, "complex"),
            ({"x": np.full((30, 2), np.nan), "y": np.arange(30) % 2}, "sample 0 has a value"),
            ({"x": np.full((30, 2), 1e300), "y": np.arange(30) % 2}, "not a finite float32"),
            ({"x": np.zeros((30, 2)), "y": np.zeros(30, int)}, "1 class"),
            ({"x": np.zeros((30, 0)), "y": np.arange(30) % 2}, "nothing is in them"),
            ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "0 class"),
            ({"x": np.zeros((30, 2)), "y": np.arange(30) % 9, "classes": np.array(["a"])}, "0 to 8"),
            ({"x": np.zeros((4, 2)), "y": np.arange(4)}, "class '0' has"),
            (
                {"x_train": np.zeros((9, 2)), "y_train": np.arange(9) % 2,
                 "x_test": np.zeros((9, 3)), "y_test": np.arange(9) % 2}, "x_test",
            ),
        ],
    )  # fmt: skip
    def test_arrays_that_cannot_be_used(self, tmp_path, arrays, message):
        assert message in refused(self.save(tmp_path, **arrays), tmp_path)

    def test_files_that_are_not_archives(self, tmp_path):
        whole = tmp_path / "whole.npz"
        np.savez_compressed(whole, x=np.zeros((300, 20)), y=np.arange(300) % 2)
        np.save(tmp_path / "single.npz.npy", np.zeros(3))
        for content in (
            b"", b"text", whole.read_bytes()[:-30], (tmp_path / "single.npz.npy").read_bytes(),
        ):  # fmt: skip
            (tmp_path / "data.npz").write_bytes(content)
            assert "data.npz" in refused("npz:data.npz", tmp_path)


class TestFolder:
    def test_grey_images_have_one_channel_and_classes_are_alphabetical(self, tmp_path):
        write_images(tmp_path, classes=("dog", "cat"))
        data = read("folder:.", tmp_path)
        assert data.classes == ("cat", "dog")
        assert data.inputs.shape == (12, 1, 8, 10)
        assert data.inputs[data.labels == 1].max() == 5  # "dog" was written first, with 0 to 5

    def test_one_coloured_image_makes_all_rgb(self, tmp_path):
        write_images(tmp_path)
        Image.new("RGBA", (10, 8), (1, 2, 3, 255)).save(tmp_path / "cat/color.png")
        data = read("folder:.", tmp_path)
        assert data.inputs.shape == (13, 3, 8, 10)
        assert [1, 2, 3] in data.inputs[:, :, 0, 0].tolist()

    def test_jpegs_and_other_files_beside_them(self, tmp_path):
        write_images(tmp_path, mode="RGB", suffix=".JPG")
        (tmp_path / "cat/notes.txt").write_text("not an image")
        (tmp_path / "cat/.hidden.png").write_bytes(b"not an image")
        (tmp_path / ".cache").mkdir()
        assert len(read("folder:.", tmp_path).labels) == 12

    def test_train_and_test_folders_are_the_splits(self, tmp_path):
        write_images(tmp_path / "train", each=5)
        write_images(tmp_path / "test", each=3)
        data = read("folder:.", tmp_path)
        assert len(data.test) == 6
        assert len(data.train) + len(data.validation) == 10

    def test_sixteen_bit_grey_is_scaled_not_clipped(self, tmp_path):
        for name, value in (("a", 0x4000), ("b", 0x8000)):
            (tmp_path / name).mkdir()
            for i in range(4):
                Image.fromarray(np.full((8, 8), value, np.uint16)).save(
                    tmp_path / name / f"{i}.png"
                )
        assert set(read("folder:.", tmp_path).inputs.flat) == {0x40, 0x80}

    def test_the_orientation_a_camera_wrote_is_applied(self, tmp_path):
        write_images(tmp_path, size=(8, 10))
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90°
        Image.new("L", (8, 10)).save(tmp_path / "cat/phone.jpg", exif=exif)
        assert read("folder:.", tmp_path).inputs.shape[2:] == (8, 10)

    def test_mixed_sizes_need_image_size(self, tmp_path):
        write_images(tmp_path)
        Image.new("L", (4, 4)).save(tmp_path / "dog/small.png")
        message = refused("folder:.", tmp_path)
        assert "small.png" in message
        assert "data.image_size" in message
        assert read("folder:.", tmp_path, image_size=(12, 9)).input.shape == (1, 12, 9)

    def test_a_corrupt_image_is_named(self, tmp_path):
        write_images(tmp_path)
        path = tmp_path / "dog/3.png"
        whole = path.read_bytes()
        for broken in (b"", b"text", whole[:-25], whole[:40] + b"\xff" * 8 + whole[48:]):
            path.write_bytes(broken)
            assert str(path) in refused("folder:.", tmp_path)

    def test_an_empty_folder_says_so(self, tmp_path):
        assert "empty" in refused("folder:.", tmp_path)
        (tmp_path / "cat").mkdir()
        assert "empty" in refused("folder:.", tmp_path)
        write_images(tmp_path, classes=("dog",))
        assert "class 'cat' has 0 samples" in refused("folder:.", tmp_path)

    def test_a_bomb_of_an_image_is_refused(self, tmp_path, monkeypatch):
        write_images(tmp_path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        assert "too large" in refused("folder:.", tmp_path)

    def test_the_fingerprint_follows_the_content(self, tmp_path):
        write_images(tmp_path)
        config = Data(source="folder:.")
        before = fingerprint(config, tmp_path)
        (tmp_path / "notes.txt").write_text("not data")
        assert fingerprint(config, tmp_path) == before
        Image.new("L", (10, 8), 3).save(tmp_path / "cat/0.png")
        os.utime(tmp_path / "cat/0.png", ns=(1, 1))
        assert fingerprint(config, tmp_path) != before
