"""Results of a device are used only if they are an answer to what was asked."""

import io
import json
import zipfile

import numpy as np
import pytest

from edgekd.errors import StageError
from edgekd.profile.received import clean, keep, printable

PHASE = {"batch_size": 1, "warmup": 4, "conclusive": True, "steady": True}
PLAN = {"models": [{"id": "a"}, {"id": "b"}], "phases": ["latency"]}


def model(**changes):
    return {
        "version": "1", "precision": "f32", "load": 0.1, "first": 0.1, "baseline_rss": 1,
        "peak_rss": 2, "latency": PHASE, **changes,
    }  # fmt: skip


def result(**changes):
    return {"models": {"a": model(), "b": model()}, "environment": {}, "warnings": [], **changes}


def arrays(**changes):
    times, rounds = np.array([1e-3, 2e-3, 1e-3]), np.array([0, 0, 1], np.int32)
    whole = {f"{name}/latency{of}": array for name in "ab"
             for of, array in (("", times), ("/rounds", rounds))}  # fmt: skip
    return {key: array for key, array in (whole | changes).items() if array is not None}


def archive(values):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **values)
    return buffer.getvalue()


def accept(folder, value=None, samples=None):
    data = value if isinstance(value, bytes) else json.dumps(value or result()).encode()
    keep(PLAN, data, samples or archive(arrays()), folder, where="target x")


def test_an_answer_is_kept_as_it_came(tmp_path):
    accept(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == result()
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["a/latency"].tolist() == [1e-3, 2e-3, 1e-3]


def test_more_than_was_asked_for_is_no_mistake(tmp_path):
    models = {"a": model(later={"operators": [1]}), "b": model()}
    accept(tmp_path, result(models=models), archive(arrays(more=np.arange(3))))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion|too many|nested"),
        (b'{"models": NaN}', "contains NaN"),
        (result(models={"a": model()}), r"about \['a'\], not \['a', 'b'\]"),
        (result(models={"a": model(), "b": model(), "../c": model()}), "not"),
        (result(models={"a": model(), "b": model(load=-1)}), "load"),
        (result(models={"a": model(), "b": model(peak_rss="1")}), "peak_rss"),
        (result(models={"a": model(), "b": model(latency=None)}), "result.json"),
        (result(warnings=["x"] * 1000), "warnings"),
        (result(warnings=[1]), "warnings"),
        (b" " * ((4 << 20) + 1), "too large"),
    ],
)
def test_a_result_that_is_none_is_refused(tmp_path, value, message):
    with pytest.raises(StageError, match=f"target x: the device's results .*(?:{message})"):
        accept(tmp_path, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"a/latency": None},
        {"a/latency/rounds": None},
        {"a/latency": np.array([1e-3, np.nan, 1e-3])},
        {"a/latency": np.array([1e-3, 0, 1e-3])},
        {"a/latency": np.array([1e-3, np.inf, 1e-3])},
        {"a/latency": np.array([1e-3])},
        {"a/latency": np.zeros(0), "a/latency/rounds": np.zeros(0, np.int32)},
        {"a/latency": np.ones((3, 1))},
        {"a/latency": np.ones(3, np.float32)},
        {"a/latency/rounds": np.array([0, 2, 1], np.int32)},
        {"a/latency/rounds": np.array([5, 5, 6], np.int32)},
        {"a/latency": np.array([1e-3, 2e-3, {}], object)},
        {"more": np.array([print], object)},
        {"more": np.array(["text"])},
    ],
)
def test_samples_that_are_none_are_refused(tmp_path, changes):
    with pytest.raises(StageError, match="target x: the device's results cannot be used"):
        accept(tmp_path, samples=archive(arrays(**changes)))
    assert not list(tmp_path.iterdir())


def zipped(name, data):
    buffer = io.BytesIO(archive(arrays()))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return buffer.getvalue()


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "samples",
    [
        b"no zip file",
        archive(arrays())[:-40],
        zipped("x.npy", b"no array"),
        zipped("x.npy", header((1 << 50,))),
        zipped("x.npy", header((-1,))),
        zipped("x.npy", b"\x93NUMPY\x01\x00\x10\x00__import__('os')"),
        zipped("bomb.npy", bytes(300 << 20)),
    ],
)
def test_an_archive_that_would_do_harm_is_refused(tmp_path, samples):
    with pytest.raises(StageError, match="target x: the device's results cannot be used"):
        accept(tmp_path, samples=samples)


def test_every_damaged_byte_is_a_refusal_or_harmless(tmp_path):
    whole = archive(arrays())
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        try:
            accept(tmp_path, samples=bytes(damaged))
        except StageError as error:
            assert "cannot be used" in str(error)


def test_nothing_that_a_terminal_would_obey_is_shown(tmp_path):
    accept(tmp_path, result(environment={"cpu\x1b[2J": ["\x1b]0;x\x07", "\u202egnp"]}))
    text = (tmp_path / "result.json").read_text()
    assert not {"\\u001b", "\\u0007", "\\u202e"} & {text[i : i + 6] for i in range(len(text))}
    assert clean({"a": [1, None, "b\nc"]}) == {"a": [1, None, "b c"]}
    assert len(printable("x" * 10_000)) == 500


def test_a_model_that_was_too_large_has_no_samples(tmp_path):
    models = {"a": model(), "b": {"error": "needs more than 64 MiB"}}
    only_a = {key: value for key, value in arrays().items() if key.startswith("a/")}
    accept(tmp_path, result(models=models), archive(only_a))
    assert "needs more" in (tmp_path / "result.json").read_text()


def test_another_batch_size_than_asked_for_is_refused(tmp_path):
    answer = json.dumps(result()).encode()
    with pytest.raises(StageError, match="measured at batch 1"):
        keep({**PLAN, "batch_size": 8}, answer, archive(arrays()), tmp_path, where="target x")


@pytest.mark.parametrize("launches", [[0, 0], [1, 1, 1], [0, 2, 2], [0.0, 0.0, 1.0]])
def test_launches_must_count_up_one_for_each_call(tmp_path, launches):
    samples = archive(arrays(**{"a/latency/launches": np.array(launches)}))
    with pytest.raises(StageError, match="should count up from 0"):
        accept(tmp_path, samples=samples)
