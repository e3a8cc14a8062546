"""Labels that are numbers or maps: npz, csv and ts, and every way they can be broken."""

import numpy as np
import pytest

from edgekd.config.load import validate
from edgekd.config.schema import Data
from edgekd.data.resolve import load
from edgekd.errors import UsageError

RANDOM = np.random.default_rng(0)


def read(source, base, **options):
    return load(Data(source=source, **options), 0, base)


def refused(source, base, **options):
    with pytest.raises(UsageError) as caught:
        read(source, base, **options)
    return str(caught.value)


def save(path, **arrays):
    np.savez(path / "d.npz", **arrays)


def table(path, text):
    (path / "d.csv").write_text(text, encoding="utf-8")


ROWS = "".join(f"{i},{i % 7},{0.5 * i:.1f}\n" for i in range(40))


class TestNpz:
    def test_floats_are_numbers_to_be_predicted(self, tmp_path):
        y = RANDOM.normal(50, 5, (40, 2))
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=y, classes=["speed", "load"])
        dataset = read("npz:d.npz", tmp_path)
        assert (dataset.task, dataset.classes) == ("regression", ("speed", "load"))
        assert dataset.labels.dtype == np.float32
        np.testing.assert_allclose(dataset.output.mean, y[dataset.train].mean(0), rtol=1e-5)
        np.testing.assert_allclose(dataset.output.std, y[dataset.train].std(0), rtol=1e-4)
        everything = np.concatenate([dataset.train, dataset.validation, dataset.test])
        assert sorted(everything) == list(range(40))

    def test_integers_are_numbers_where_the_task_says_so(self, tmp_path):
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=np.arange(40))
        assert read("npz:d.npz", tmp_path, task="regression").classes == ("y",)

    def test_every_number_comes_once_for_each_quantile(self, tmp_path):
        y = RANDOM.normal(size=(40, 2))
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=y)
        dataset = read("npz:d.npz", tmp_path, task="quantile", quantiles=[0.1, 0.9])
        assert dataset.task == "quantile:0.1,0.9"
        assert dataset.classes == ("y0 at 0.1", "y0 at 0.9", "y1 at 0.1", "y1 at 0.9")
        np.testing.assert_array_equal(dataset.labels[:, 0], dataset.labels[:, 1])
        np.testing.assert_allclose(dataset.labels[:, 2], y[:, 1], rtol=1e-6)

    def test_maps_of_integers_are_classes_of_pixels(self, tmp_path):
        x = RANDOM.integers(0, 255, (30, 8, 9, 3), dtype=np.uint8)
        y = RANDOM.integers(0, 3, (30, 8, 9), dtype=np.uint8)
        y[0, 0, 0] = 255
        save(tmp_path, x=x, y=y)
        dataset = read("npz:d.npz", tmp_path)
        assert (dataset.task, dataset.classes) == ("segmentation", ("0", "1", "2"))
        assert dataset.labels[0, 0, 0] == -1

    def test_a_number_that_never_changes_is_refused(self, tmp_path):
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=np.full(40, 2.5))
        assert "y is 2.5 in all training samples" in refused("npz:d.npz", tmp_path)

    def test_a_label_that_is_no_number_is_refused(self, tmp_path):
        y = RANDOM.normal(size=40)
        y[7] = np.nan
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=y)
        assert "sample 7 has a label that is no finite number" in refused("npz:d.npz", tmp_path)

    def test_a_task_that_the_labels_are_not_for_is_refused(self, tmp_path):
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=RANDOM.normal(size=40))
        text = refused("npz:d.npz", tmp_path, task="segmentation")
        assert "labels are for regression, not for segmentation" in text
        assert "not for regression" in refused("digits", tmp_path, task="regression")

    def test_names_that_do_not_fit_are_refused(self, tmp_path):
        save(tmp_path, x=RANDOM.normal(size=(40, 3)), y=RANDOM.normal(size=(40, 2)), classes=["a"])
        assert "1 different names for 2 outputs" in refused("npz:d.npz", tmp_path)


class TestCsv:
    def test_the_last_column_is_predicted_from_the_others(self, tmp_path):
        table(tmp_path, "a,b,price\n" + ROWS)
        dataset = read("csv:d.csv", tmp_path)
        assert (dataset.task, dataset.classes) == ("regression", ("price",))
        np.testing.assert_array_equal(dataset.inputs[:, 1], np.arange(40) % 7)

    def test_columns_by_name_and_semicolons(self, tmp_path):
        table(tmp_path, ("a;b;c\n" + ROWS.replace(",", ";")).replace("\n", "\r\n"))
        dataset = read("csv:d.csv", tmp_path, targets=["a", "c"])
        assert dataset.classes == ("a", "c")
        assert dataset.inputs.shape == (40, 1)

    def test_text_is_a_class(self, tmp_path):
        rows = "".join(f"{i},{'yes' if i % 2 else 'no'}\n" for i in range(40))
        table(tmp_path, "a,answer\n" + rows)
        dataset = read("csv:d.csv", tmp_path)
        assert (dataset.task, dataset.classes) == ("classification", ("no", "yes"))

    def test_numbers_are_classes_where_the_task_says_so(self, tmp_path):
        table(tmp_path, "a,b,c\n" + ROWS)
        dataset = read("csv:d.csv", tmp_path, task="classification", targets=["b"])
        assert dataset.classes == tuple("0123456")

    @pytest.mark.parametrize(
        ("text", "options", "told"),
        [
            ("a,b\n1,2\n3\n", {}, "d.csv:3: has 1 values, the header has 2"),
            ("a,b\n1,2\nx,4\n", {}, "d.csv:3: column 'a' has 'x', which is no number"),
            ("a,b\n1,2\n,4\n", {}, "column 'a' has '', which is no number"),
            ("a,b\n1,2\nnan,4\n", {}, "d.csv:3: column 'a' has 'nan', which is not a finite"),
            ("a,b\n1,2\n1,1e40\n", {}, "d.csv:3: column 'b' has '1e40', which is not a finite"),
            ("a,a\n1,2\n", {}, "should name every column, each differently"),
            ("a,b\n", {}, "has no rows below its header"),
            ("", {}, "d.csv"),
            ("a,b\n1,2\n", {"targets": ["c"]}, "no column 'c'; known: a, b"),
            ("a,b\n1,2\n", {"targets": ["a", "b"]}, "leaves no column to predict from"),
        ],
    )
    def test_what_cannot_be_used_is_told_with_its_place(self, tmp_path, text, options, told):
        table(tmp_path, text)
        assert told in refused("csv:d.csv", tmp_path, **options)

    def test_binary_files_are_refused(self, tmp_path):
        (tmp_path / "d.csv").write_bytes(bytes(range(256)))
        assert "cannot be read as CSV" in refused("csv:d.csv", tmp_path)


class TestTs:
    HEADER = "@problemName p\n@timeStamps false\n@targetLabel true\n@data\n"

    def test_targets_are_numbers(self, tmp_path):
        lines = "".join(f"{i},{i + 1}:0,1:{60 + i}.5\n" for i in range(40))
        (tmp_path / "p.ts").write_text(self.HEADER + lines)
        dataset = read("ts:p.ts", tmp_path)
        assert (dataset.task, dataset.labels[3, 0]) == ("regression", 63.5)

    def test_a_target_that_is_none_is_told_by_line(self, tmp_path):
        (tmp_path / "p.ts").write_text(self.HEADER + "1,2:60\n1,2:?\n")
        assert "p.ts:6: target '?' is no number" in refused("ts:p.ts", tmp_path)


def test_quantiles_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="should rise"):
        Data(quantiles=[0.9, 0.1])


class TestUnits:
    """Numbers far from 0 and 1."""

    def test_labels_that_float32_rounds_too_much_are_refused(self, tmp_path):
        rows = "".join(f"{i},{1.7e9 + i % 9}\n" for i in range(40))
        table(tmp_path, f"a,seconds\n{rows}")
        message = refused("csv:d.csv", tmp_path)
        assert "float32 rounds labels by up to" in message
        assert "take a constant off them" in message

    def test_tiny_inputs_and_labels_are_normalised_like_others(self, tmp_path):
        rows = "".join(f"{i * 1e-9!r},{(i % 9) * 1e-12!r}\n" for i in range(40))
        table(tmp_path, f"amperes,farad\n{rows}")
        dataset = read("csv:d.csv", tmp_path)
        inputs = dataset.tensor(dataset.train)
        assert 0.9 < float(inputs.std()) < 1.1
        assert 1e-12 < dataset.output.std[0] < 4e-12

    def test_a_split_of_one_value_says_nothing(self, tmp_path):
        x, y = RANDOM.normal(size=(40, 3)), RANDOM.normal(size=40)
        save(tmp_path, x_train=x, y_train=y, x_test=x[:5], y_test=np.full(5, 2.0))
        assert "y is 2 in all 5 samples of the test split" in refused("npz:d.npz", tmp_path)


def test_a_table_without_a_header_is_refused(tmp_path):
    table(tmp_path, ROWS)
    assert "d.csv:1: the first line has numbers" in refused("csv:d.csv", tmp_path)


def test_arrays_of_no_and_of_other_shapes_are_refused(tmp_path):
    x = RANDOM.normal(size=(40, 3))
    save(tmp_path, x=x, y=np.float64(3))
    assert "y is a single value" in refused("npz:d.npz", tmp_path)
    save(tmp_path, x_train=x, y_train=x[:, 0], x_test=x, y_test=x)
    assert "y_test has labels of shape (3,), y_train ()" in refused("npz:d.npz", tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantiles": [0.2, 0.8]}, "quantiles: goes with data.task: quantile"),
        ({"targets": ["a"]}, "targets: is for csv:, not npz:"),
        ({"image_size": [8, 8]}, "image_size: is for folder: and masks:, not npz:"),
        ({"audio": {"mels": 20}}, "audio: is for audio:, not npz:"),
        ({"task": "quantile", "quantiles": [0.1, 0.10000001]}, "two of them are the same"),
    ],
)
def test_keys_of_other_sources_and_tasks_are_refused(options, told):
    with pytest.raises(UsageError) as caught:
        validate({"data": {"source": "npz:d.npz", **options}}, where="c.yaml", lines={})
    assert told in str(caught.value)


def test_a_first_label_that_is_missing_is_told_by_line(tmp_path):
    table(tmp_path, "a,b,c\n1,2,NA\n" + ROWS)
    assert "d.csv:2: column 'c' has 'NA', which is no number" in refused("csv:d.csv", tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    table(tmp_path, "")
    assert "has no rows" in refused("csv:d.csv", tmp_path)
