"""Deployed files of texts: ids of any length in, and the tokenizer that makes them."""

import json

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from tokenizers import Tokenizer

from edgekd import api
from edgekd.errors import UsageError
from edgekd.models import role
from edgekd.results import Tokens, VerifyReport
from edgekd.verify.inputs import cases


@pytest.fixture(scope="module")
def exported(bert, tmp_path_factory):
    """A run up to verify, with free lengths; of a teacher and a student that were hardly trained."""
    folder = tmp_path_factory.mktemp("exported")
    config = {
        "name": "text",
        "data": {"source": f"text:{bert.data}", "text": {"max_length": 24}},
        "teacher": {"model": f"hf:{bert.folder}"},
        "student": {"model": "zoo:bert", "args": {"dim": 16, "depth": 2, "heads": 2}},
        "distill": {"epochs": 1, "threads": 1, "methods": ["kd", "tinybert"]},
        "export": {"dynamic": ["batch", "sequence"], "output": "argmax"},
        "history": None,
    }
    return api.verify(config, out=folder / "run")


@pytest.mark.slow
def test_files_take_texts_of_any_length_and_answer_as_pytorch(bert, exported):
    tokenizer = Tokenizer.from_file(str(exported.path / "export/tokenizer.json"))
    for role_name in ("teacher", "student"):
        module = role.load(exported, role_name, exported.path)
        session = onnxruntime.InferenceSession(exported.path / f"export/{role_name}.onnx")
        ir = openvino.Core().compile_model(exported.path / f"export/{role_name}.xml", "CPU",
                                           {"INFERENCE_PRECISION_HINT": "f32"})  # fmt: skip
        for texts in (bert.texts[:1], bert.texts[:5], [*bert.texts[:2], "fine"]):
            ids = np.array([e.ids for e in tokenizer.encode_batch(texts)])
            assert ids.shape[1] < 24  # as long as the longest
            with torch.inference_mode():
                expected = module(torch.from_numpy(ids)).numpy()
            assert np.allclose(session.run(None, {"input": ids})[0], expected, atol=1e-4)
            assert np.allclose(ir(ids)[0], expected, atol=1e-4)


@pytest.mark.slow
def test_padding_changes_nothing(bert, exported):
    session = onnxruntime.InferenceSession(exported.path / "export/student.onnx")
    tokenizer = Tokenizer.from_file(str(exported.path / "export/tokenizer.json"))
    ids = np.array([tokenizer.encode(bert.texts[0]).ids])
    longer = np.pad(ids, ((0, 0), (0, 24 - ids.shape[1])))
    short, long = (session.run(None, {"input": x})[0] for x in (ids, longer))
    assert np.allclose(short, long, atol=1e-5)


@pytest.mark.slow
def test_they_say_what_they_eat(exported):
    session = onnxruntime.InferenceSession(exported.path / "export/student.onnx")
    (entry,) = session.get_inputs()
    assert (entry.type, entry.shape) == ("tensor(int64)", ["batch", "sequence"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["edgekd.input"])
    size = Tokenizer.from_file(str(exported.path / "export/tokenizer.json")).get_vocab_size()
    assert said["tokens"] == {"vocabulary": size, "padding": 0}


@pytest.mark.slow
def test_they_are_verified_with_ids_that_no_text_gives_and_half_lengths(exported):
    report = VerifyReport.read(exported.path / "verify/parity.json")
    inputs = {case.inputs for edge in report.edges for case in edge.cases}
    assert {"all padding", "one token", "largest id", "random ids", "size 12"} <= inputs
    assert "denormals" not in inputs
    kinds = {(d.format, d.input_type, d.output) for d in report.device}
    assert kinds == {("onnx", "int64", "argmax"), ("openvino", "int64", "argmax")}


def test_cases_of_ids_stay_in_the_vocabulary():
    samples = np.ones((40, 8), np.int64)
    found = {c.name: c for c in cases(samples, [1, 4], [0], tokens=Tokens(vocabulary=9, padding=3))}
    assert all(c.x.dtype == np.int64 and 0 <= c.x.min() <= c.x.max() < 9 for c in found.values())
    assert found["size 4"].x.shape == (2, 4)
    assert (found["all padding"].x == 3).all()
    assert found["one token"].x.tolist() == [[1, *[3] * 7]]


def test_there_is_nothing_to_fold(config):
    with pytest.raises(UsageError, match=r"export\.preprocessing: token ids are not normalised"):
        api.resolve(config(export={"preprocessing": "fold"}))
