"""Students of transfer sets: only what is in the set teaches, and teachers still learn from everything."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgekd.distill.workshop import Workshop
from edgekd.errors import UsageError
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context
from edgekd.results import History
from edgekd.tasks.kinds.classification import cross_entropy
from tests.distill.schemes.conftest import StopAfter, same
from tests.heard import Heard


def test_cross_entropy_is_the_mean_over_those_that_have_a_label():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, -1, 0, -1, 3])
    expected = -sum(z.log_softmax(1)[i, c] for i, c in ((0, 2), (2, 0), (4, 3))) / 3
    found = cross_entropy(z, labels)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, z)
    assert (gradient[[1, 3]] == 0).all()
    none = cross_entropy(z, torch.full((5,), -1))
    none.backward()
    assert none.item() == 0
    assert (z.grad == 0).all()
    everyone = torch.tensor([2, 1, 0, 1, 3])
    torch.testing.assert_close(cross_entropy(z, everyone), F.cross_entropy(z, everyone))


def test_labels_that_are_not_told_change_nothing(lab):
    """Soft targets alone: the same student whatever the labels of the transfer set are."""
    methods = [{"kd": {"weight": 1.0}}]
    told = lab("told", distill={"alpha": 0.0, "methods": methods}).distill()
    untold = lab(
        "untold", distill={"alpha": 0.0, "methods": methods, "transfer": {"labels": 0.0}}
    ).distill()
    assert same(told.network(), untold.network())


def test_a_few_labels_and_soft_targets_of_all_samples(lab):
    run = lab(distill={"transfer": {"labels": 0.1}, "epochs": 20}).distill()
    alone = lab(
        "alone", distill={"transfer": {"share": 0.1}, "epochs": 20, "methods": [], "alpha": 1.0}
    ).distill()
    history = History.read(run.path / "student/history.json")
    assert set(history.epochs[0].losses) == {"cross_entropy", "kd"}
    assert run.report.models[-1].test.value > alone.report.models[-1].test.value + 0.05


def test_a_student_learns_a_class_it_never_saw_from_the_soft_targets_of_others(lab):
    """Hinton §3: without a single 3, and without labels; its probability is in the soft targets."""
    soft = {"alpha": 0.0, "epochs": 60, "methods": [{"kd": {"temperature": 8.0, "weight": 1.0}}],
            "transfer": {"without": ["3"]}}  # fmt: skip
    run = lab(
        data={"limit": 1000}, student={"model": "zoo:mlp", "args": {"hidden": [48]}}, distill=soft
    ).distill()
    blind = lab(
        "blind", data={"limit": 1000}, student={"model": "zoo:mlp", "args": {"hidden": [48]}},
        distill={**soft, "alpha": 1.0, "methods": []},
    ).distill()  # fmt: skip
    right = run.report.models[-1].test.per_class[3]
    assert blind.report.models[-1].test.per_class[3][0] == 0
    assert right[0] > 0.2 * right[1]


def test_unlabelled_samples_teach_through_the_teacher(lab, tmp_path):
    run = lab(distill={"transfer": {"unlabelled": "digits"}, "epochs": 2}).distill()
    plain = lab("plain", distill={"epochs": 2}).distill()
    assert not same(run.network(), plain.network())
    samples = {
        json.loads(path.read_text())["samples"]
        for path in (tmp_path / "runs/.knowledge").glob("*/store.json")
    }
    assert samples == {1797, 2 * 1797}


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"unlabelled": "npz:large.npz"}, r"unlabelled npz:large.npz: has uint8 samples of shape"),
        ({"unlabelled": "npz:none.npz"}, r"unlabelled npz:none.npz: no such file"),
        ({"without": ["eleven"]}, "unknown class 'eleven'"),
    ],
)
def test_a_transfer_set_that_cannot_be_made_is_refused_before_its_teacher_is_trained(
    lab, tmp_path, monkeypatch, transfer, message
):
    monkeypatch.chdir(tmp_path)
    np.savez("large.npz", x=np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(UsageError, match=message):
        lab(distill={"transfer": transfer}).distill(StopAfter(1))


def test_classes_of_which_no_label_is_left_are_told(lab):
    heard, made = Heard(), lab(distill={"transfer": {"labels": 0.01, "without": ["3"]}})
    workshop = Workshop(Context(made.config, made.base, Run(made.path), made.path, heard))
    train = workshop.dataset.train
    known = {str(label) for label in workshop.dataset.labels[train] if label >= 0}
    missing = ", ".join(repr(c) for c in "012456789" if c not in known)
    assert heard.lines == [
        f"  transfer set: {len(train)} samples, 2 with labels (none of class {missing})"
    ]


@pytest.mark.parametrize("scheme", ["online", "byot", {"born_again": {"generations": 2}}])
def test_every_scheme_takes_a_transfer_set(lab, scheme):
    student = {"model": "zoo:dscnn", "args": {"width": 4, "depth": 2}}
    run = lab(
        student=student,
        distill={"scheme": scheme, "transfer": {"share": 0.5, "labels": 0.5}, "epochs": 1},
    ).distill()
    assert run.report.models[-1].test.total == len(run.dataset.test)


def test_members_of_an_ensemble_learn_from_everything(lab):
    scheme = {"ensemble": {"members": 1}}
    run = lab(distill={"scheme": scheme, "transfer": {"only": ["7", "8"]}}).distill()
    member, student = run.report.models[0], run.report.models[-1]
    assert sum(right > 0 for right, _ in member.test.per_class) > 5
    assert np.mean([right for right, _ in student.test.per_class]) < np.mean(
        [right for right, _ in member.test.per_class]
    )
