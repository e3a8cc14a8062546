"""A teacher behind a model server: nothing is paid twice, nothing collected is lost, trouble has a name."""

import contextlib
import json
import socket

import numpy as np
import pytest
import trustme

from edgekd import api
from edgekd.errors import StageError, UsageError
from tests.heard import Heard
from tests.teachers.oip_server import Server, hang, tls
from tests.teachers.runs import changed, teacher_stage

QUICK = {"retries": 2, "pause": 0.01, "timeout": 10}


@pytest.fixture
def server(taught):
    server = Server(taught.file)
    yield server
    with contextlib.suppress(OSError):
        server.stop()


def spec(server, scheme="oip", host="127.0.0.1", *, data=None, **args):
    teacher = {"model": f"{scheme}://{host}:{server.port}/digits", "args": {**QUICK, **args}}
    return changed(teacher=teacher, data=data or {}, distill={"epochs": 2})


def held_out(dataset):
    return len(dataset.validation) + len(dataset.test)


def test_its_answers_are_the_models_and_each_is_paid_once(server, digits, taught, tmp_path):
    run = api.distill(spec(server), out=tmp_path / "a")
    samples = len(digits.labels)
    assert server.asked == samples
    with np.load(run.path / "teacher/answers.npz") as archive:
        known = np.isfinite(archive["logits"]).all(1)
        assert known.sum() == held_out(digits)
        np.testing.assert_allclose(archive["logits"][known], taught.logits[known], atol=1e-4)
    # Another student, another method, another seed: a few are asked again to see that they hold.
    for name, change in (("b", {"student": {"model": "zoo:mlp", "args": {"hidden": [8]}}}),
                         ("c", {"distill": {"methods": ["dkd"]}}), ("d", {"seed": 3})):  # fmt: skip
        before = server.asked
        api.distill(spec(server) | change, out=tmp_path / name)
        assert server.asked - before <= 2 * 8, name


def test_what_the_student_learns_from_is_what_the_onnx_file_would_have_said(
    server, taught, tmp_path
):
    remote = api.distill(spec(server), out=tmp_path / "remote")
    local = changed(teacher={"model": f"onnx:{taught.file}"}, distill={"epochs": 2})
    beside = api.distill(local, out=tmp_path / "local")
    a, b = ([e.losses["kd"] for e in run.history("student").epochs] for run in (remote, beside))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_every_view_of_a_sample_is_asked_about(server, digits, tmp_path):
    config = spec(server, data={"augment": {"crop": 1, "views": 2}})
    api.distill(config, out=tmp_path / "run")
    assert server.asked == held_out(digits) + 2 * len(digits.train)


def test_of_unlabelled_samples_only_those_are_asked_that_were_not_yet(server, digits, tmp_path):
    samples = len(digits.labels)
    api.distill(spec(server), out=tmp_path / "plain")
    config = spec(server)
    config["distill"] = {**config["distill"], "transfer": {"unlabelled": "digits"}}
    api.distill(config, out=tmp_path / "more")
    # A few of what is known are asked again to see that they hold.
    assert 2 * samples <= server.asked <= 2 * samples + 3 * 8


def test_one_that_dies_loses_nothing_and_is_gone_on_with(server, digits, tmp_path):
    server.trouble = lambda n, answer: answer if n <= 10 else None
    config = spec(server, batch=32, concurrency=2)
    with pytest.raises(StageError, match=r"cannot be reached.*tried 3 times") as error:
        api.distill(config, out=tmp_path / "run")
    assert "what was collected is kept" in str(error.value)
    paid = server.asked
    assert 8 * 32 <= paid <= 11 * 32
    server.trouble = lambda n, answer: answer
    api.distill(config, out=tmp_path / "run")
    # All but what a check asks for again, when the collection went on and before the training.
    assert server.asked <= len(digits.labels) + 2 * 8


def test_what_passes_is_tried_again(server, digits, tmp_path):
    server.status = lambda n: 503 if n % 3 == 0 else 200
    api.distill(spec(server, retries=8), out=tmp_path / "run")
    assert server.asked == len(digits.labels)


def nan(n, answer):
    answer["outputs"][0]["data"][3] = None if n % 2 else float("nan")
    return answer


def narrow(n, answer):
    output = answer["outputs"][0]
    output["data"], output["shape"] = (
        output["data"][: output["shape"][0] * 7],
        [output["shape"][0], 7],
    )
    return answer


def lying(n, answer):
    answer["outputs"][0]["shape"] = [3, 10]
    return answer


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (nan, "answers to 1 of 32 samples are not finite numbers"),
        (narrow, r"answers with shape \(32, 7\); should be \(32, 10\)"),
        (lying, "no output 'logits' of the shape that it says"),
        (lambda n, answer: {"outputs": []}, "no output 'logits'"),
        (lambda n, answer: b"<html>proxy</html>", "not JSON"),
        (lambda n, answer: [], "no output 'logits'"),
    ],
)
def test_answers_that_cannot_be_used_are_errors_of_one_line(server, tmp_path, trouble, message):
    server.trouble = trouble
    with pytest.raises(StageError, match=message):
        teacher_stage(spec(server), tmp_path / "run")


def test_one_that_hangs_is_given_up_on(server, tmp_path):
    server.trouble = hang
    with pytest.raises(StageError, match=r"does not answer in time.*tried 2 times"):
        teacher_stage(spec(server, timeout=0.2, retries=1, concurrency=1), tmp_path / "run")


def test_nobody_there_is_one_clear_error(tmp_path, taught):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = changed(
        teacher={"model": f"oip://127.0.0.1:{port}/digits", "args": {**QUICK, "retries": 0}}
    )
    with pytest.raises(
        StageError, match=rf"127.0.0.1:{port}/v2/models/digits: .*cannot be reached"
    ):
        teacher_stage(config, tmp_path / "run")


def test_a_model_that_it_does_not_have_is_named(server, tmp_path):
    config = spec(server)
    config["teacher"]["model"] += "x"
    with pytest.raises(StageError, match="digitsx: the server says 404: no model"):
        teacher_stage(config, tmp_path / "run")


def test_the_quota_may_be_exhausted(server, digits, tmp_path):
    server.status = lambda n: 429 if n > 5 else 200
    with pytest.raises(StageError, match=r"the quota is exhausted.*429"):
        teacher_stage(spec(server), tmp_path / "run")
    server.status = lambda n: 200
    teacher_stage(spec(server), tmp_path / "run")
    assert server.asked <= held_out(digits) + 8


def test_one_that_changes_its_answers_is_found_out(server, digits, tmp_path):
    api.distill(spec(server), out=tmp_path / "a")
    honest = server.logits
    server.logits = lambda x: honest(x)[:, ::-1]
    other = spec(server) | {"seed": 1}
    with pytest.raises(StageError, match=r"has changed: \d of 8 answers .* are others now"):
        api.distill(other, out=tmp_path / "b")
    told = Heard()
    warned = spec(server, changed="warn") | {"seed": 1}
    api.distill(warned, out=tmp_path / "c", progress=told)
    assert any("warning: the teacher has changed" in text for text in told.lines)
    server.logits = honest
    server.metadata = {**server.metadata, "versions": ["2"]}
    with pytest.raises(StageError, match=r"versions is \['2'\], it was \['1'\]"):
        api.distill(spec(server) | {"distill": {"methods": ["dkd"]}}, out=tmp_path / "d")


def test_all_known_it_need_not_be_there_any_more(server, tmp_path):
    api.distill(spec(server), out=tmp_path / "a")
    server.stop()
    told = Heard()
    config = spec(server, retries=0) | {"distill": {"epochs": 1, "methods": ["dkd"]}}
    api.distill(config, out=tmp_path / "b", progress=told)
    assert any("all of its answers are known" in text for text in told.lines)


def test_another_order_of_classes_is_told_by_their_names(server, digits, taught, tmp_path):
    order, honest = np.random.default_rng(0).permutation(10), server.logits
    server.logits = lambda x: honest(x)[:, order]
    server.metadata["outputs"][0]["parameters"] = {"labels": [str(i) for i in order]}
    teacher, _ = teacher_stage(spec(server), tmp_path / "run")
    said = teacher.answers(digits, digits.test)
    np.testing.assert_allclose(said, taught.logits[digits.test], atol=1e-4)


def test_labels_alone_teach_hard_methods_and_no_others(server, digits, taught, tmp_path):
    server.metadata["outputs"][0].update(datatype="INT64", shape=[-1])
    server.trouble = lambda n, answer: {
        "outputs": [{"name": "logits", "datatype": "INT64", "shape": [answer["outputs"][0]["shape"][0]],
                     "data": np.reshape(answer["outputs"][0]["data"], (-1, 10)).argmax(1).tolist()}]
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"kd needs the teacher's logits"):
        teacher_stage(spec(server), tmp_path / "a")
    config = spec(server)
    config["distill"] = {**config["distill"], "methods": ["hard"]}
    teacher, _ = teacher_stage(config, tmp_path / "b")
    said = teacher.answers(digits, digits.test).argmax(1)
    assert np.array_equal(said, taught.logits[digits.test].argmax(1))


def test_tls_verifies_the_certificate(taught, digits, tmp_path):
    ours, theirs = trustme.CA(), trustme.CA()
    for name, authority in (("ours", ours), ("theirs", theirs)):
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    server = Server(taught.file, tls(ours.issue_cert("localhost")))
    try:
        good = spec(server, "oips", "localhost", ca=str(tmp_path / "ours.pem"))
        _, run = teacher_stage(good, tmp_path / "a")
        assert run.training("teacher").test.value > 0.8
        for ca in (str(tmp_path / "theirs.pem"), None):
            bad = spec(server, "oips", "localhost", ca=ca)
            with pytest.raises(StageError, match="certificate is not trusted"):
                teacher_stage(bad, tmp_path / f"b{ca is None}" / "run")
        # The right authority, for another name.
        wrong = spec(server, "oips", "127.0.0.1", ca=str(tmp_path / "ours.pem"))
        with pytest.raises(StageError, match="certificate is not trusted"):
            teacher_stage(wrong, tmp_path / "c" / "run")
    finally:
        server.stop()


def test_keys_come_from_the_environment_and_are_written_nowhere(server, tmp_path, monkeypatch):
    secret = "s3cr3t-0123456789"
    with pytest.raises(UsageError, match="environment variable EDGEKD_TEST_KEY is not set"):
        teacher_stage(spec(server, key="EDGEKD_TEST_KEY"), tmp_path / "a")
    monkeypatch.setenv("EDGEKD_TEST_KEY", secret)
    api.distill(spec(server, key="EDGEKD_TEST_KEY"), out=tmp_path / "b")
    assert all(h["Authorization"] == f"Bearer {secret}" for h in server.headers)
    server.status = lambda n: 401
    config = spec(server, key="EDGEKD_TEST_KEY") | {"data": {"validation": 0.2}}
    with pytest.raises(StageError) as error:
        teacher_stage(config, tmp_path / "c")
    assert secret not in str(error.value)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("oip://user:s3cr3t@host:8080/m", "would end up in logs"),
        ("oip://host:8080/m?token=s3cr3t", "would end up in logs"),
        ("oip://host:8080", "names no model"),
        ("oip:///m", "should be like oip://HOST:PORT/MODEL"),
        ("oip://host:99999/m", "[Pp]ort out of range"),
    ],
)
def test_addresses_are_checked_when_the_configuration_is_read(model, message):
    with pytest.raises(UsageError, match=message) as error:
        api.resolve({"teacher": {"model": model}})
    assert "s3cr3t" not in str(error.value)


def test_interrupted_it_goes_on(server, digits, tmp_path):
    def interrupt(n, answer):
        if n == 6:
            import _thread

            _thread.interrupt_main()
        return answer

    server.trouble = interrupt
    with pytest.raises(Exception, match="stopped in stage teacher"):
        teacher_stage(spec(server, concurrency=1), tmp_path / "run")
    paid = server.asked
    assert 0 < paid < held_out(digits)
    server.trouble = lambda n, answer: answer
    teacher_stage(spec(server), tmp_path / "run")
    assert server.asked <= held_out(digits) + 8
    assert (
        json.loads((tmp_path / "run/teacher/model.server.json").read_text())["output"] == "logits"
    )
