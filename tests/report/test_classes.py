"""What the student lost and won: counted as a loop would, with examples that people can look at."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from edgekd.errors import UsageError
from edgekd.report.classes import Answers, answers, changes
from edgekd.report.contents import read
from edgekd.report.data import document
from edgekd.report.examples import examples
from edgekd.report.html import render
from edgekd.verify.examples import pick, within
from tests.report.test_html import HOSTILE, Page, page, words

NAMES = ("a", "b", "c")


def of(labels, teacher, student):
    labels, teacher, student = map(np.array, (labels, teacher, student))
    logits = {
        role: np.eye(3)[given] for role, given in (("teacher", teacher), ("student", student))
    }
    return Answers("onnxruntime", "f32", labels, teacher, student, np.arange(len(labels)), logits)


def test_counts_are_those_of_a_loop_over_the_samples():
    random = np.random.default_rng(0)
    given = [random.integers(0, 3, 300) for _ in range(3)]
    found = changes(of(*given), NAMES)
    samples = list(zip(*(g.tolist() for g in given), strict=True))
    assert found.lost == sum(t == y != s for y, t, s in samples)
    assert found.won == sum(s == y != t for y, t, s in samples)
    assert found.difference == (found.won - found.lost) / 300
    for i, c in enumerate(found.classes):
        mine = [(t, s) for y, t, s in samples if y == i]
        assert (c.samples, c.teacher, c.student) == (
            len(mine), sum(t == i for t, _ in mine), sum(s == i for _, s in mine)
        )  # fmt: skip
        assert c.interval[0] < c.difference < c.interval[1]
    for c in found.confusions:
        pair = NAMES.index(c.label), NAMES.index(c.answer)
        assert c.teacher == sum((y, t) == pair for y, t, _ in samples)
        assert c.student == sum((y, s) == pair for y, _, s in samples)
    by_size = [abs(c.student - c.teacher) for c in found.confusions]
    assert by_size == sorted(by_size, reverse=True)


def test_an_interval_says_whether_chance_could_do_it():
    few = changes(of([0] * 100, [0] * 100, [0] * 99 + [1]), NAMES)
    many = changes(of([0] * 100, [0] * 100, [0] * 80 + [1] * 20), NAMES)
    assert "Chance can make such a difference" in few.sentence
    assert "20 wrong that the teacher gets right" in many.sentence
    assert "Chance hardly does that" in many.sentence
    assert many.interval[1] < 0


def test_a_class_without_samples_is_no_crash():
    found = changes(of([0, 1], [0, 1], [0, 0]), NAMES)
    assert (found.classes[2].samples, found.classes[2].difference) == (0, 0)


class TestPick:
    LABELS = np.array([0, 0, 0, 1, 1, 2])
    TEACHER = np.eye(3)[[0, 0, 0, 1, 0, 2]]

    def student(self):
        logits = np.eye(3)[[1, 1, 2, 1, 1, 2]]
        logits[1] *= 9  # the surest mistake
        return logits

    def test_every_confusion_comes_once_before_any_again_the_surest_first(self):
        assert pick(self.LABELS, self.TEACHER, [self.student()], 12).tolist() == [1, 2, 0, 4]

    def test_a_third_is_what_was_won(self):
        assert pick(self.LABELS, self.TEACHER, [self.student()], 3).tolist() == [1, 2, 4]

    def test_students_take_turns(self):
        other = np.eye(3)[[0, 0, 0, 2, 0, 2]]
        assert pick(self.LABELS, self.TEACHER, [self.student(), other], 2).tolist() == [1, 3]

    def test_none_is_none(self):
        assert pick(self.LABELS, self.TEACHER, [self.student()], 0).tolist() == []
        assert pick(self.LABELS, self.TEACHER, [self.TEACHER], 5).tolist() == []

    def test_a_run_keeps_8_mib_of_its_data_at_most(self):
        positions = np.arange(12)
        assert len(within(positions, 1024)) == 12
        assert len(within(positions, 2**20)) == 8
        assert len(within(positions, 2**30)) == 0


def test_the_page_shows_recall_confusions_and_examples(finished, source):
    text = words(Page(source))
    for expected in (
        "What the student lost and won",
        "Recall, student less teacher, onnxruntime",
        "Confusions that changed most, onnxruntime",
        "Examples from the test split",
    ):
        assert expected in text
    assert "1 → 4" in text  # as the fixture's student answers
    parity = finished.verify.files
    (found,) = (changes(a, tuple("0123456789")) for a in answers(read(finished), finished))
    teacher, student = (p.accuracy.correct for p in parity[:2])
    assert found.won - found.lost == student - teacher


def test_examples_are_the_pictures_of_the_samples(finished, source):
    images = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', source)
    assert len(images) == 6
    with np.load(finished.path / "verify/examples.npz") as kept:
        positions, inputs = kept["positions"], kept["inputs"]
    alts = [int(re.search(r"sample (\d+)", alt)[1]) for _, alt in images]
    assert sorted(alts) == sorted((positions + 1000).tolist())
    for (data, _), index in zip(images, alts, strict=True):
        raw = inputs[positions.tolist().index(index - 1000), 0]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_allclose(shown / 255, raw / 16, atol=1 / 255)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 300, 200), (1, 1, 40), (13,), (1,)])
def test_inputs_of_any_shape_have_a_picture(builder, shape):
    builder.shape = shape
    builder.classes = (HOSTILE, HOSTILE, HOSTILE, *builder.classes[3:])
    run = builder.build("teacher", "distill", "verify")
    contents = read(run)
    card = contents.models["student"].card
    shown = examples(run, answers(contents, run), card.classes, card.input)
    kind = "<img " if len(shape) == 3 and shape[1] > 1 else '<svg class="line"'
    assert [example.picture.startswith(kind) for example in shown] == [True] * 6
    assert all(len(example.picture) < 40_000 for example in shown)
    assert not [example for example in shown if "<script" in example.picture]


def test_a_run_that_kept_no_answers_says_so(builder):
    run = builder.build()
    for name in ("logits.npz", "examples.npz"):
        (run.path / "verify" / name).unlink()
    text = words(page(run))
    assert "The answers to single samples were not kept." in text
    assert "Test accuracy by class" in text


@pytest.mark.parametrize("name", ["logits.npz", "examples.npz"])
def test_an_archive_that_is_none_is_one_clear_error(builder, name):
    run = builder.build("teacher", "distill", "verify")
    (run.path / "verify" / name).write_bytes(b"no archive")
    with pytest.raises(UsageError, match=f"{name}: not an archive"):
        render(run)


@pytest.mark.parametrize("broken", ["classes", "labels", "infinite", "file"])
def test_logits_of_other_models_are_one_clear_error(builder, broken):
    run = builder.build("teacher", "distill", "verify")
    with np.load(run.path / "verify/logits.npz") as archive:
        logits = dict(archive)
    match broken:
        case "classes":
            logits["onnxruntime/student"] = logits["onnxruntime/student"][:, :9]
        case "labels":
            logits["labels"][0] = 10
        case "infinite":
            logits["onnxruntime/teacher"][3, 3] = np.inf
        case "file":
            del logits["onnxruntime/student"]
    builder._npz("verify/logits.npz", **logits)
    with pytest.raises(UsageError, match=r"logits\.npz: is of other models"):
        render(run)


def test_an_archive_of_pickles_is_refused(builder):
    run = builder.build("teacher", "distill", "verify")
    np.savez(run.path / "verify/examples.npz", positions=np.array([{}]), inputs=np.array([{}]))
    with pytest.raises(UsageError, match=r"examples\.npz"):
        render(run)


@pytest.mark.parametrize("positions", [[-1], [540]])
def test_examples_of_another_split_are_refused(builder, positions):
    run = builder.build()
    builder._npz(
        "verify/examples.npz", positions=np.array(positions), inputs=np.zeros((1, 1, 8, 8))
    )
    with pytest.raises(UsageError, match="other inputs"):
        render(run)


def test_the_document_has_the_same_figures(finished):
    (found,) = document(finished)["classes"]
    assert found["samples"] == 540
    assert [c["name"] for c in found["classes"]] == list("0123456789")
