"""Time series in the archive's format: what was written is read, and what is malformed is told by line."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgekd import api
from edgekd.config.schema import Data
from edgekd.data.resolve import load
from edgekd.data.sources.ts import read_ts
from edgekd.errors import UsageError

EXAMPLE = Path(__file__).parents[2] / "examples/sensors"
HEADER = "# a comment\n@problemName X\n@timeStamps false\n@classLabel true a b\n@data\n"


@pytest.fixture(scope="session")
def motions():
    spec = importlib.util.spec_from_file_location("motions_example", EXAMPLE / "motions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(path, text):
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_ts(path)
    return str(caught.value)


def test_channels_and_classes_are_read_as_written(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text(HEADER + "1,2,3:4,5,6:b\n\n-1,0.5,1e-3:0,0,0:a\n")
    series, labels = read_ts(path)
    assert series.dtype == np.float32
    assert series.tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[-1, 0.5, pytest.approx(1e-3)], [0, 0, 0]],
    ]
    assert labels.tolist() == ["b", "a"]


def test_a_folder_is_a_data_set_with_its_own_test_split(motions, tmp_path):
    motions.write(tmp_path / "m", train=60, test=24)
    data = load(Data(source="ts:m"), 0, tmp_path)
    assert data.input.shape == (3, 128)
    assert data.classes == motions.MOTIONS
    assert data.test.tolist() == list(range(60, 84))
    assert data.tensor(data.train).mean((0, 2)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("1,2,3:a\n1,2:a\n", "x.ts:7: a series of 1 × 2 values"),
        ("1,2:1,2,3:a\n", "x.ts:6: its channels have different lengths: 2, 3"),
        ("1,?,3:a\n", "x.ts:6: has missing values"),
        ("1,x,3:a\n", "x.ts:6: has values that are no numbers"),
        ("1,2,3:c\n", "x.ts:6: class 'c' is none of @classLabel: a, b"),
        ("a\n", "x.ts:6: should be values, a colon and the class"),
        ("", "has no series after @data"),
    ],
)
def test_malformed_series_are_told_by_line(lines, told, tmp_path):
    assert told in refused(tmp_path / "x.ts", HEADER + lines)


def test_other_files_and_headers_are_refused(tmp_path):
    path = tmp_path / "x.ts"
    assert "has no @data" in refused(path, "@problemName X\n")
    assert "x.ts:1: values before @data" in refused(path, "1,2,3\n4,5,6\n")
    assert "has time stamps" in refused(path, "@timeStamps true\n@data\n")
    assert "has no classes" in refused(path, "@classLabel false\n@data\n")
    with pytest.raises(UsageError, match=r"0 files \*_TRAIN\.ts"):
        load(Data(source=f"ts:{tmp_path}"), 0, tmp_path)


def test_values_that_are_not_finite_and_splits_of_other_lengths_are_refused(tmp_path):
    rows = "".join(f"1,2,{i}:{c}\n" for i in range(4) for c in "ab")
    (tmp_path / "X_TRAIN.ts").write_text(HEADER + rows)
    (tmp_path / "X_TEST.ts").write_text(HEADER + "1,2,3,4:a\n1,2,3,4:b\n")
    with pytest.raises(UsageError, match=r"different shapes: 1 × 3 in X_TRAIN.ts, 1 × 4 in X_TEST"):
        load(Data(source=f"ts:{tmp_path}"), 0, tmp_path)
    (tmp_path / "X_TEST.ts").write_text(HEADER + "1,nan,3:a\n1,2,3:b\n")
    with pytest.raises(UsageError, match="not a finite"):
        load(Data(source=f"ts:{tmp_path}"), 0, tmp_path)


@pytest.mark.slow
def test_the_example_passes_its_budgets(motions, tmp_path):
    motions.write(tmp_path / "motions")
    config = tmp_path / "compress.yaml"
    config.write_bytes((EXAMPLE / "compress.yaml").read_bytes())
    fast = ["profile.max_seconds=1", "profile.launches=2", "profile.operators=false"]
    run = api.compress(config, out=tmp_path / "run", overrides=fast)
    assert run.gate.exit_code != 1
    assert {c.verdict for c in run.gate.checks if c.metric != "accuracy_drop"} == {"pass"}
    assert (run.path / "report.html").is_file()
