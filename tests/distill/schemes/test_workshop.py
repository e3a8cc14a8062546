"""What every distillation does around its training: the doctor, and the store that runs share."""

import re
import textwrap

import numpy as np
import pytest

from edgekd import api
from edgekd.distill.knowledge_files import stores, verify
from edgekd.distill.workshop import FOLDER, store_identity
from edgekd.results import History
from tests.heard import Heard

MLP = {"model": "zoo:mlp", "args": {"hidden": [48]}}


def said(run):
    heard = Heard()
    run.distill(heard)
    return "\n".join(heard.lines)


def test_the_doctor_looks_at_every_distillation_unless_it_is_told_not_to(lab):
    text = said(lab("with"))
    assert "gradients: cross_entropy" in text
    assert "warning" not in text
    assert "gradients" not in said(lab("without", distill={"doctor": False}))


def test_a_run_warns_of_a_teacher_near_chance_and_of_a_rate_that_is_too_high(lab):
    untaught = {"train": {"epochs": 1, "threads": 1, "learning_rate": 1e-6}}
    text = said(lab(teacher=untaught, distill={"learning_rate": 2.0, "max_norm": 0.1}))
    assert "warning: the teacher is right on" in text
    assert "near chance" in text
    assert "warning: learning_rate 2 is high" in text


def test_a_run_warns_of_a_teacher_that_draws_random_numbers(lab, tmp_path):
    code = """
        from torch import nn
        from torch.nn import functional as F

        class Restless(nn.Sequential):
            def forward(self, x):
                return super().forward(F.dropout(x, 0.5, training=True))

        def net():
            return Restless(nn.Flatten(), nn.Linear(64, 10))
    """
    (tmp_path / "restless.py").write_text(textwrap.dedent(code))
    run = lab(teacher={"model": f"{tmp_path}/restless.py:net", "args": {}})
    assert "something else of the same samples when it is asked again" in said(run)


@pytest.mark.parametrize(
    ("scheme", "terms"),
    [
        ("online", "peer 1 cross_entropy, peer 1 mutual, peer 2 cross_entropy, peer 2 mutual"),
        ("byot", "cross_entropy, exits cross_entropy, exits kd, exits hint"),
    ],
)
def test_networks_that_teach_each_other_or_themselves_are_looked_at_too(lab, scheme, terms):
    student = {"model": "zoo:dscnn", "args": {"width": 8, "depth": 3}}
    text = said(lab(student=student, distill={"scheme": scheme, "epochs": 1, "learning_rate": 3.0}))
    (line,) = re.findall("gradients: (.*)", text)
    assert re.sub(r" [\d.e+-]+(,|$)", r"\1", line) == terms
    assert re.findall("warning: .*", text) == [
        "warning: learning_rate 3 is high for sgd: 0.1 is a usual one"
    ]


def test_an_initialisation_is_among_the_gradients(lab):
    pair = {"tap": ["penultimate", "penultimate"]}
    run = lab(distill={"methods": ["kd", {"fitnet": {**pair, "alone": 1}}], "epochs": 3})
    assert re.search(r"gradients: fitnet \S+, cross_entropy \S+, kd \S+", said(run))
    history = History.read(run.path / "student/history.json")
    first, *rest = (epoch.learning_rate for epoch in history.epochs)
    assert first < rest[0] > rest[1], "each has a schedule of its own"


def test_runs_of_a_given_teacher_share_its_store_whatever_their_seed(lab, tmp_path):
    lab("taught").distill()
    weights = str(tmp_path / "runs/taught/teacher/model.safetensors")
    stores = tmp_path / "runs" / FOLDER
    of_the_trained = set(stores.iterdir())
    given = {"teacher": {"weights": weights},
             "distill": {"scheme": {"ensemble": {"members": [{**MLP, "weights": weights}]}}}}  # fmt: skip
    for name, seed in (("a", 0), ("b", 5)):
        run = lab(name, **given)
        run.config = run.config.model_copy(update={"seed": seed})
        run.distill()
    assert len(set(stores.iterdir()) - of_the_trained) == 1
    first, second = (tmp_path / "runs" / name / "student/model.safetensors" for name in "ab")
    assert first.read_bytes() != second.read_bytes()


def test_the_store_is_named_by_everything_that_its_answers_depend_on(tmp_path):
    def identity(teacher="a", precision="f32", **data):
        config, base = api.resolve({"data": {"limit": 300, **data}})
        return store_identity(teacher, config, base, precision)

    same = identity()
    assert identity() == same
    others = [
        identity(teacher="b"),
        identity(precision="bf16"),
        identity(mean=[0.3], std=[1.0]),
        identity(augment={"crop": 1}),
        identity(augment={"crop": 1, "views": 2}),
        identity(limit=200),
        identity(seed=1),
    ]
    assert all(other != same for other in others)
    assert len({repr(other) for other in others}) == len(others)


def test_a_run_warns_of_a_store_that_says_something_else_and_not_of_one_that_keeps_a_part(
    lab, tmp_path
):
    """Of ten logits three are kept: what the store gives is not what the teacher says, and is right."""

    def warned(width):
        run = lab(str(width), student=of_width(width), distill={"knowledge": {"top_k": 3}})
        return "the knowledge store says something else" in said(run)

    assert [warned(12), warned(13)] == [False, False]
    (stored,) = stores(tmp_path / "runs")
    confuse(stored)
    assert warned(14)


def confuse(stored):
    """Every answer of the first view becomes the one to another sample."""
    store = stored.open()
    rows = np.flatnonzero(store.known(np.arange(store.samples), 0))
    wrong = store.read(rows, 0).roll(1, 0)
    store.close()
    for shard in stored.folder.glob("*.bin"):
        shard.unlink()
    stored.open().keep(rows, 0, wrong)


@pytest.mark.parametrize(
    ("sections", "taught"),
    [
        ({"distill": {"methods": ["kd", "rkd"]}}, [None, None]),
        ({"distill": {"scheme": {"ensemble": {"members": 1}}}}, ["student"]),
        ({"distill": {"scheme": {"assistant": {"chain": ["zoo:mlp"]}}}}, [None, "student"]),
        ({"distill": {"scheme": {"specialists": {"count": 1, "epochs": 1}}}}, ["student"]),
        ({"distill": {"scheme": "online", "methods": ["kd"]}}, [None]),
        (
            {
                "data": {"limit": 300, "augment": {"mixup": 0.5}},
                "distill": {"transfer": {"share": 0.5}},
            },
            [None],
        ),
        ({"distill": {"transfer": {"unlabelled": "digits"}}}, [None]),
    ],
)
def test_what_every_teacher_of_a_run_said_is_verified_and_nothing_is_written(
    lab, tmp_path, sections, taught
):
    run = lab(**sections).distill()

    def written():
        return {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}

    before = written()
    found = verify(run.path, 50, 0)
    assert [v.taught for v in found] == taught
    assert all(v.same and v.rows >= 14 for v in found), found
    assert written() == before
    for stored in stores(tmp_path / "runs"):
        confuse(stored)
    assert not any(v.same for v in verify(run.path, 50, 0))


def of_width(width):
    return {"model": "zoo:mlp", "args": {"hidden": [width]}}


@pytest.mark.parametrize(
    ("augment", "counts"), [({"mixup": 0.5}, [1, 1, 2, 2, 3]), ({"crop": 1}, [1, 1, 1, 1, 1])]
)
def test_answers_to_mixtures_are_shared_where_the_partners_are_the_same(
    lab, tmp_path, augment, counts
):
    """Another transfer set has other partners in every mixture; without one its samples are the same."""
    found = []
    # Other students: the same one would be taken from its neighbour and ask nothing.
    for width, share in ((12, 1.0), (13, 1.0), (12, 0.5), (13, 0.5), (12, 0.4)):
        lab(
            f"{width}-{share}",
            data={"limit": 300, "augment": augment},
            student=of_width(width),
            distill={"transfer": {"share": share}},
        ).distill()
        found.append(len(list((tmp_path / "runs" / FOLDER).iterdir())))
    assert found == counts
