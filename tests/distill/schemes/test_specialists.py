"""Hinton's specialists: which classes, what they learn from, what they say together, and in one student."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from edgekd.data.enrich import enriched
from edgekd.distill.method import Knowledge
from edgekd.errors import UsageError
from edgekd.results import History
from edgekd.teachers.kinds.torch import TorchTeacher
from edgekd.teachers.specialists import (
    Expert,
    Specialist,
    Specialists,
    combine,
    confusable,
    grouped,
    relevant,
)
from tests.distill.schemes.conftest import StopAfter, refused, same

SETS = [(0, 1, 2), (2, 3)]
SPECIALISTS = {"specialists": {"count": 2, "classes": 3, "epochs": 2}}


def distribution(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)


def objective(q, generalist, specialists, active):
    """Eq. 5 for one sample, in loops over classes."""
    total = sum(p * math.log(p / a) for p, a in zip(generalist, q, strict=True))
    for m, (p, s) in enumerate(zip(specialists, SETS, strict=True)):
        if active[m]:
            total += sum(p[i] * math.log(p[i] / q[c]) for i, c in enumerate(s))
            dustbin = sum(q[c] for c in range(len(q)) if c not in s)
            total += p[-1] * math.log(p[-1] / dustbin)
    return total


@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, False)])
def test_what_they_say_together_minimises_the_papers_objective(asked):
    n, classes = 4, 6
    generalist = distribution(n, classes, 0)
    specialists = [distribution(n, len(s) + 1, 1 + m) for m, s in enumerate(SETS)]
    active = torch.tensor([asked] * n)
    q = combine(generalist, specialists, SETS, active)
    torch.testing.assert_close(q.sum(1), torch.ones(n, dtype=torch.float64))
    for i in range(n):
        p = [s[i].tolist() for s in specialists]

        def loss(z, i=i, p=p):
            e = np.exp(z - z.max())
            return objective((e / e.sum()).tolist(), generalist[i].tolist(), p, asked)

        best = minimize(loss, np.zeros(classes), method="BFGS", options={"gtol": 1e-9})
        found = objective(q[i].tolist(), generalist[i].tolist(), p, asked)
        assert found <= best.fun + 1e-9
        e = np.exp(best.x - best.x.max())
        assert q[i].tolist() == pytest.approx((e / e.sum()).tolist(), abs=1e-4)


def test_without_a_relevant_specialist_the_generalist_is_not_changed():
    generalist = distribution(3, 6, 0)
    nobody = torch.zeros(3, 2, dtype=torch.bool)
    answers = [distribution(3, len(s) + 1, 1) for s in SETS]
    assert torch.equal(combine(generalist, answers, SETS, nobody), generalist)


def test_specialists_that_agree_with_the_generalist_change_nothing():
    generalist = distribution(5, 6, 0)
    answers = [grouped(generalist.log(), s).exp() for s in SETS]
    q = combine(generalist, answers, SETS, torch.ones(5, 2, dtype=torch.bool))
    torch.testing.assert_close(q, generalist)


def test_relevant_are_those_that_have_one_of_the_most_probable_classes():
    logits = torch.tensor([[9.0, 0, 0, 0, 1], [0, 0, 9, 0, 1], [0, 0, 0, 1, 9]])
    assert relevant(logits, SETS, 1).tolist() == [[True, False], [True, True], [False, False]]
    assert relevant(logits, SETS, 2).tolist() == [[True, False], [True, True], [False, True]]


def test_the_dustbin_has_the_sum_of_the_probabilities_of_all_other_classes():
    p = distribution(4, 6, 3)
    found = grouped(p.log() + 5.0, (1, 4)).softmax(1)
    for i in range(4):
        rest = sum(p[i, c].item() for c in (0, 2, 3, 5))
        assert found[i].tolist() == pytest.approx([p[i, 1].item(), p[i, 4].item(), rest])


def test_the_dustbins_logit_is_raised_by_the_log_of_the_oversampling():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 6)
    x = torch.randn(5, 8)
    teacher = TorchTeacher(Specialist(model, (0, 1)))
    together = Specialists(TorchTeacher(model), [Expert(teacher, (0, 1), 3.0)], top=6)
    z = grouped(model(x).double(), (0, 1))
    z[:, -1] += math.log(3.0)
    with torch.no_grad():
        expected = combine(
            model(x).double().softmax(1), [z.softmax(1)], [(0, 1)], torch.ones(5, 1).bool()
        )
    found = together.knowledge(x, torch.arange(5), 0).logits.softmax(1).double()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_confusable_classes_are_found_from_predictions():
    generator = np.random.default_rng(0)
    groups, logits = [(0, 3, 5), (1, 2), (4, 6)], np.zeros((3000, 7))
    for row in logits:
        group = groups[generator.integers(3)]
        row[list(group)] = 4 + generator.normal(0, 1, len(group))
    found = confusable(torch.from_numpy(logits), 3, 2, temperature=1.0, seed=0)
    assert (1, 2) in found
    assert (4, 6) in found
    assert any(set(s) <= {0, 3, 5} for s in found)
    assert confusable(torch.from_numpy(logits), 3, 2, temperature=1.0, seed=0) == found


def test_half_of_what_a_specialist_learns_from_are_its_classes(lab):
    dataset = lab().dataset
    data, oversampled = enriched(dataset, (3, 8), seed=1)
    assert data.classes == ("3", "8", "(others)")
    counts = np.bincount(data.labels[data.train], minlength=3)
    of = np.isin(dataset.labels[dataset.train], (3, 8))
    assert counts[0] + counts[1] == counts[2] == of.sum()
    for new, old in zip(data.labels, dataset.labels, strict=True):
        assert data.classes[new] == (str(old) if old in (3, 8) else "(others)")
    assert oversampled == pytest.approx((~of).sum() / of.sum())
    assert set(data.train) <= set(dataset.train)
    assert np.array_equal(data.test, dataset.test)


def test_a_specialist_starts_as_the_generalist_and_learns_its_classes(lab):
    run = lab(
        distill={"scheme": {"specialists": {"count": 2, "classes": 3, "epochs": 8, "soft": 0.5}}}
    )
    run.distill()
    report = {m.name: m for m in run.report.models}
    assert list(report) == [
        "generalist", "specialist 1", "specialist 2", "generalist and specialists", "student",
    ]  # fmt: skip
    generalist, dataset = run.network("teacher"), run.dataset
    inputs = dataset.tensor(dataset.train)
    for name, folder in (("specialist 1", "1"), ("specialist 2", "2")):
        names = report[name].classes
        assert len(names) == 3
        classes = tuple(dataset.classes.index(c) for c in names)
        own = run.network(f"student/specialists/{folder}")
        assert not same(own, generalist)
        data, _ = enriched(dataset, classes, seed=0)
        labels = torch.from_numpy(data.labels[dataset.train])
        with torch.no_grad():
            before, after = (
                torch.nn.functional.cross_entropy(Specialist(m, classes)(inputs), labels)
                for m in (generalist, own)
            )
        assert after < before
        first = History.read(run.path / f"student/specialists/{folder}/history.json").epochs[0]
        assert set(first.losses) == {"cross_entropy", "kd"}


def test_a_specialist_of_a_small_rate_stays_near_the_generalist(lab):
    scheme = {"specialists": {"count": 1, "classes": 3, "epochs": 1, "rate": 1e-6}}
    run = lab(distill={"scheme": scheme}).distill()
    generalist, own = run.network("teacher"), run.network("student/specialists/1")
    assert not same(own, generalist)
    for a, b in zip(generalist.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_student_learns_from_what_they_say_together(lab, tmp_path):
    run = lab(distill={"scheme": SPECIALISTS}).distill()
    dataset, experts = run.dataset, []
    for k, model in enumerate((m for m in run.report.models if m.classes), 1):
        classes = tuple(dataset.classes.index(c) for c in model.classes)
        network = Specialist(run.network(f"student/specialists/{k}"), classes)
        _, oversampled = enriched(dataset, classes, seed=k)
        experts.append(Expert(TorchTeacher(network), classes, oversampled))
    together = Specialists(TorchTeacher(run.network("teacher")), experts)

    def knowledge(inputs, indices, view):
        return Knowledge(together.knowledge(inputs, indices, view).logits.clone())

    assert same(run.by_hand(tmp_path, knowledge), run.network())
    said = together.knowledge(dataset.tensor(dataset.test), torch.from_numpy(dataset.test), 0)
    right = (said.logits.argmax(1).numpy() == dataset.labels[dataset.test]).sum()
    assert run.report.models[-2].test.correct == right


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same_student(lab):
    whole = lab("whole", distill={"scheme": SPECIALISTS}).distill()
    for steps in (2, 9, 14):
        cut = lab(f"{steps}/cut", distill={"scheme": SPECIALISTS, "checkpoint_every": 0.0})
        with pytest.raises(RuntimeError, match="power cut"):
            cut.distill(StopAfter(30 + steps))
        cut.distill()
        assert same(cut.network(), whole.network())
        assert [m.name for m in cut.report.models] == [m.name for m in whole.report.models]


def test_specialists_without_a_dustbin_or_for_methods_on_features_are_refused(lab):
    with pytest.raises(UsageError, match="leave none for the dustbin"):
        lab(distill={"scheme": {"specialists": {"classes": 10}}}).distill()
    message = refused(scheme="specialists", methods=["fitnet"])
    assert re.search("fitnet needs features, and in scheme specialists", message)
