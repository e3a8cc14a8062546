"""Answers in files of every format: the same teacher, told from its own logits."""

import csv
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import softmax

from edgekd import api
from edgekd.errors import UsageError
from edgekd.gate.stage import _figures
from edgekd.pipeline.line import config_of, run_line
from edgekd.pipeline.stages import Context
from edgekd.progress import Silent
from edgekd.teachers.kinds.records import _matrix
from edgekd.teachers.tables import read_table, write_parquet
from tests.heard import Heard
from tests.teachers.runs import changed, teacher_stage

CLASSES = tuple("0123456789")


def write(path, rows, columns):
    """`columns`: name → one value per id of `rows`. Lists are cells of one value per class."""
    cells = {name: np.asarray(values).tolist() for name, values in columns.items()}
    records = [{"id": int(i), **{n: v[k] for n, v in cells.items()}} for k, i in enumerate(rows)]
    match path.suffix:
        case ".parquet":
            write_parquet(path, records, CLASSES)
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        case ".npz":
            np.savez(path, id=rows, **{n: np.asarray(v) for n, v in columns.items()})
        case ".csv":
            names = {n: [f"{n}.{c}" for c in CLASSES] if np.ndim(v) == 2 else [n]
                     for n, v in columns.items()}  # fmt: skip
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["id", *(c for several in names.values() for c in several)])
                for record in records:
                    flat = [np.atleast_1d(record[n]).tolist() for n in names]
                    writer.writerow([record["id"], *(x for part in flat for x in part)])
    return path


def spec(path, methods=("kd",), **args):
    return changed(
        teacher={"model": f"records:{path}", "args": args}, distill={"methods": list(methods)}
    )


@pytest.fixture
def answers(taught):
    p = softmax(torch.from_numpy(taught.logits).double(), dim=1).numpy()
    return {"logits": taught.logits, "probabilities": p, "label": taught.logits.argmax(1)}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".npz", ".csv"])
@pytest.mark.parametrize("gives", ["logits", "probabilities", "label"])
def test_every_format_gives_what_the_teacher_said(tmp_path, digits, answers, suffix, gives):
    shuffled = np.random.default_rng(0).permutation(len(digits.labels))
    path = write(tmp_path / f"r{suffix}", shuffled, {gives: answers[gives][shuffled]})
    methods = ["hard"] if gives == "label" else ["kd"]
    teacher, run = teacher_stage(spec(path, methods), tmp_path / "run")
    said = teacher.answers(digits, digits.test)
    truth = answers["logits"][digits.test]
    if gives == "label":
        assert teacher.provides == {"labels"}
        assert np.array_equal(said.argmax(1), truth.argmax(1))
    else:
        expected = softmax(torch.from_numpy(truth), dim=1).numpy()
        np.testing.assert_allclose(softmax(torch.from_numpy(said), 1).numpy(), expected, atol=1e-5)
    right = (truth.argmax(1) == digits.labels[digits.test]).sum()
    assert run.training("teacher").test.correct == right


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".npz", ".csv"])
def test_soft_methods_of_label_records_are_refused_before_anything_is_done(
    tmp_path, digits, answers, suffix
):
    ids = np.arange(len(digits.labels))
    path = write(tmp_path / f"r{suffix}", ids, {"label": answers["label"]})
    with pytest.raises(UsageError, match=r"kd needs the teacher's logits.*\n.*work with it: hard"):
        teacher_stage(spec(path), tmp_path / "run")
    assert not (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize("mixed", ["mixup", "cutmix"])
def test_mixed_samples_are_refused_as_nothing_is_recorded_of_them(tmp_path, digits, answers, mixed):
    path = write(tmp_path / "r.npz", np.arange(len(digits.labels)), {"label": answers["label"]})
    config = {**spec(path, ["hard"]), "data": {"augment": {mixed: 1.0}}}
    with pytest.raises(UsageError, match="nothing is recorded of mixed samples"):
        teacher_stage(config, tmp_path / "run")
    assert not (tmp_path / "run/run.json").exists()


def test_samples_beside_the_data_are_refused_as_nothing_is_recorded_of_them(
    tmp_path, digits, answers
):
    path = write(tmp_path / "r.npz", np.arange(len(digits.labels)), {"logits": answers["logits"]})
    config = {**spec(path), "distill": {"transfer": {"unlabelled": "digits"}}}
    with pytest.raises(UsageError, match=r"unlabelled: nothing is recorded of samples beside"):
        teacher_stage(config, tmp_path / "run")


@pytest.mark.slow
def test_the_whole_line_runs_with_a_teacher_of_which_only_answers_are_known(
    tmp_path, digits, answers
):
    ids = np.arange(len(digits.labels))
    path = write(tmp_path / "r.parquet", ids, {"logits": answers["logits"]})
    config = spec(path) | {
        "gate": {"budgets": [{"metric": "accuracy_drop", "max": "60 points"},
                             {"metric": "agreement", "min": "1 %"}]},
        "quantize": {"recipe": "entropy"},
    }  # fmt: skip
    run = api.compress(config, out=tmp_path / "run")
    assert {file.role for file in run.files} == {"student"}
    assert not run.profile.comparisons
    assert run.exit_code == 0
    with np.load(run.path / "verify/logits.npz") as logits:
        theirs, labels = logits["onnxruntime/teacher"], logits["labels"]
        ours = logits["onnxruntime/student-int8"]
    drop = (theirs.argmax(1) == labels).mean() - (ours.argmax(1) == labels).mean()
    (check,) = (c for c in run.gate.checks if c.metric == "accuracy_drop")
    assert check.value == pytest.approx(drop)
    report = (run.path / "report.html").read_text()
    assert "teacher not measured: it only answers" in report
    assert "class by class" in (run.path / "MODEL_CARD.md").read_text()
    assert _done_again(config, run) == []


def _done_again(config, run):
    resolved, base = api.resolve(config)
    return run_line(resolved, base=base, out=run.path, progress=Silent())[1]


@pytest.mark.slow
def test_records_of_the_training_split_alone_leave_the_drop_undecided(tmp_path, digits, answers):
    path = write(tmp_path / "r.npz", digits.train, {"logits": answers["logits"][digits.train]})
    config = spec(path) | {"gate": {"budgets": [{"metric": "accuracy_drop", "max": "1 point"}]}}
    run = api.compress(config, out=tmp_path / "run")
    assert run.training("teacher").test is None
    assert run.exit_code == 4
    assert "no answers to the test split" in run.gate.checks[0].text


def test_of_some_test_samples_drop_and_agreement_are_those(tmp_path, digits, answers):
    known = np.concatenate([digits.train, digits.test[::2]])
    path = write(tmp_path / "r.npz", known, {"logits": answers["logits"][known]})
    run = api.profile(spec(path), out=tmp_path / "run")
    config, base = config_of(run)
    found = {f.metric: f for f in _figures(Context(config, base, run, run.path, Silent()))}
    with np.load(run.path / "verify/logits.npz") as logits:
        theirs, ours, labels = (
            logits[n][::2] for n in ("onnxruntime/teacher", "onnxruntime/student", "labels")
        )
    assert np.isfinite(theirs).all()
    t, s = theirs.argmax(1), ours.argmax(1)
    assert found["accuracy_drop"].value == pytest.approx(
        (t == labels).mean() - (s == labels).mean()
    )
    assert found["agreement"].value == pytest.approx((t == s).mean())
    assert f"on the {len(t)} samples" in found["agreement"].note
    assert run.training("teacher").test.total == len(t)


def test_missing_answers_are_counted_or_left_out(tmp_path, digits, answers):
    known = np.setdiff1d(np.arange(len(digits.labels)), digits.train[:37])
    path = write(tmp_path / "r.npz", known, {"logits": answers["logits"][known]})
    with pytest.raises(UsageError, match=rf"no answer to 37 of {len(digits.train)} training"):
        teacher_stage(spec(path), tmp_path / "a")
    heard = Heard()
    run = api.distill(spec(path, missing="leave_out"), out=tmp_path / "b", progress=heard)
    assert any(f"37 of {len(digits.train)} training samples are left out" in s for s in heard.lines)
    assert run.training("student").test.value > 0.3


def test_classes_in_another_order_are_put_right_by_name(tmp_path, digits, answers):
    order = np.random.default_rng(1).permutation(10)
    ids = np.arange(len(digits.labels))
    path = tmp_path / "r.npz"
    np.savez(path, id=ids, logits=answers["logits"][:, order], classes=order.astype(str))
    teacher, _ = teacher_stage(spec(path), tmp_path / "run")
    np.testing.assert_array_equal(teacher.answers(digits, ids), answers["logits"])


def test_samples_of_a_folder_are_known_by_their_paths(tmp_path):
    from PIL import Image

    ids = []
    for label in ("cat", "dog"):
        for i in range(8):
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * i + 5).save(path)
            ids.append(f"{label}/{i}.png")
    lines = [json.dumps({"id": i, "label": i.partition("/")[0]}) for i in reversed(ids)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    config = spec(tmp_path / "r.jsonl", ["hard"]) | {
        "data": {"source": f"folder:{tmp_path}/images"}
    }
    _, run = teacher_stage(config, tmp_path / "run")
    assert run.training("teacher").test.value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, ids: c.update(logits=np.full_like(c["logits"], np.inf)), "1797 of 1797 rows of logits"),
        (lambda c, ids: c.update(logits=c["logits"][:, :7]), r"shape \(1797, 7\); should be"),
        (lambda c, ids: c.update(probabilities=c.pop("logits")), "not between 0 and 1"),
        (lambda c, ids: c.update(label=np.full(1797, 11), gone=c.pop("logits")), "no class .* as '11'"),
        (lambda c, ids: c.update(rubbish=c.pop("logits")), "has the columns id, rubbish"),
        (lambda c, ids: ids.__setitem__(3, 5), "more than once, such as '5'"),
        (lambda c, ids: ids.__setitem__(3, 9999), "1 of its 1797 ids are of no sample, such as '9999'"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_used_say_why(tmp_path, digits, answers, change, message):
    ids, columns = np.arange(1797), {"logits": answers["logits"].copy()}
    change(columns, ids)
    path = write(tmp_path / "r.npz", ids, columns)
    method = "hard" if "label" in columns else "kd"
    with pytest.raises(UsageError, match=message):
        teacher_stage(spec(path, [method]), tmp_path / "run")


@pytest.mark.parametrize(
    ("suffix", "rows", "message"),
    [
        (".csv", ["logits.a,logits.b", "1,2", "3,x"], "row 2 of column 'logits.b' has 'x', which is"),
        (".jsonl", ['{"logits": [1, 2]}', '{"logits": [1, "x"]}'], "row 2 of column 'logits' has 'x'"),
        (".jsonl", ['{"logits": [1, 2]}', '{"logits": [1]}'], "row 2 of column 'logits' has 1 values"),
        (".jsonl", ['{"logits": {"a": 1}}', '{"logits": {"b": 1}}'], "row 2 of column 'logits' has no 'a'"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_told_with_row_and_column(tmp_path, suffix, rows, message):
    path = tmp_path / f"r{suffix}"
    path.write_text("\n".join(rows))
    with pytest.raises(UsageError, match=message) as told:
        _matrix(read_table(path), "logits", path)
    assert told.value.where == str(path)


@pytest.mark.parametrize("name", ["r.parquet", "r.npz", "r.csv", "r.jsonl", "r.txt"])
def test_files_that_are_no_records_are_errors_of_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\xff\x13not a table" * 50)
    with pytest.raises(UsageError) as error:
        teacher_stage(spec(tmp_path / name), tmp_path / "run")
    assert name in str(error.value)


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "r.npz", logits=np.array([object()]), id=np.arange(1))
    with pytest.raises(UsageError, match="cannot be read"):
        teacher_stage(spec(tmp_path / "r.npz"), tmp_path / "run")
