"""The doctor: complains of what would not teach, says nothing of what would, and touches nothing."""

import re

import pytest
import torch
from torch import nn

from edgekd.config.schema import Distill
from edgekd.distill.doctor import examine, gradient_line, gradient_norms
from edgekd.distill.method import METHODS, Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.tasks.kinds.classification import accuracy

CLASSES, N = 4, 32
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, 6, generator=GENERATOR)
LABELS = torch.randint(0, CLASSES, (N,), generator=GENERATOR)
ANSWERS = torch.randn(N, CLASSES, generator=GENERATOR)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES)
    )


def teacher_accuracy(share=0.97, total=400, classes=CLASSES):
    labels = torch.arange(total).numpy() % classes
    answers = labels.copy()
    wrong = round((1 - share) * total)
    answers[:wrong] = (answers[:wrong] + 1) % classes
    return accuracy(answers, labels, classes)


def complaints(
    objective=None,
    answers=ANSWERS,
    teacher=None,
    student=None,
    again=None,
    stored=None,
    expected=None,
    **config,
):
    objective = objective or Objective(0.1, (KD(),))
    return examine(
        student or network(), objective, Distill(**config), teacher or teacher_accuracy(),
        INPUTS, Knowledge(answers), LABELS, again=again, stored=stored, expected=expected,
    ).complaints  # fmt: skip


def test_a_sound_distillation_gets_no_complaint():
    assert complaints() == []


def test_the_norms_are_those_of_autograd_and_nothing_is_touched():
    student, objective = network().train(), Objective(0.1, (KD(warmup=5),))
    before = {k: v.clone() for k, v in student.state_dict().items()}
    state = torch.get_rng_state()
    norms = gradient_norms(student, objective, INPUTS, Knowledge(ANSWERS), LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    student(INPUTS)
    torch.set_rng_state(state)
    terms = Objective(0.1, (KD(),)).terms(Knowledge(student(INPUTS)), Knowledge(ANSWERS), LABELS)
    for name, term in terms.items():
        student.zero_grad()
        term.backward(retain_graph=True)
        expected = torch.cat([p.grad.flatten() for p in student.parameters()]).norm().item()
        assert norms[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.3, 0.0])
def test_a_teacher_near_chance_is_suspected(share):
    (complaint,) = complaints(teacher=teacher_accuracy(share))
    assert "near chance (25.0%)" in complaint
    assert "data.mean" in complaint


def test_answers_that_say_nothing_are_noticed():
    assert any("same logits" in c for c in complaints(answers=torch.ones(N, CLASSES)))
    broken = ANSWERS.clone()
    broken[3, 1] = float("nan")
    assert any("not finite" in c for c in complaints(answers=broken))


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd", 5.0), ("adamw", 0.5), ("sgd", 1e-6), ("adamw", 1e-8)]
)
def test_a_learning_rate_out_of_all_proportion_is_noticed(optimizer, rate):
    (complaint,) = complaints(optimizer=optimizer, learning_rate=rate)
    how = "high" if rate > 0.1 else "so low"
    assert f"learning_rate {rate:g} is {how} for {optimizer}" in complaint


def test_a_term_without_gradient_is_named():
    (complaint,) = complaints(Objective(0.1, (KD(weight=0.0),)))
    assert complaint.startswith("kd gives the student no gradient")

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x).detach()

    found = complaints(student=Detached())
    assert [c.split(" gives")[0] for c in found] == ["cross_entropy", "kd"]


def test_a_term_that_is_drowned_is_named_with_the_factor():
    (complaint,) = complaints(Objective(0.1, (KD(weight=1e5),)))
    assert complaint.startswith("cross_entropy is outweighed")
    # The labels' weight is a share: the other's is to be lowered.
    suggested = float(re.search(r"try kd.weight: ([\d.e+]+)", complaint)[1])
    norms = gradient_norms(
        network(), Objective(0.1, (KD(weight=suggested),)), INPUTS, Knowledge(ANSWERS), LABELS
    )
    assert norms["kd"] / norms["cross_entropy"] == pytest.approx(10, rel=0.5)
    assert "that of kd" in complaint
    assert complaints(Objective(1.0, (METHODS.get("logits")(),))) == []


def test_a_loss_of_normalised_features_may_be_large_at_the_start_but_not_out_of_all_proportion():
    rkd = METHODS.get("rkd")
    student, teacher = network(), network()

    def found(weight):
        objective = Objective(0.1, (KD(), rkd(weight=weight)))
        objective.prepare(student, teacher.eval(), INPUTS[:4], 0)
        with torch.no_grad(), Tapped(teacher, objective.teacher_taps) as tapped:
            known = Knowledge(*tapped(INPUTS))
        accuracy, config = teacher_accuracy(), Distill()
        return examine(student, objective, config, accuracy, INPUTS, known, LABELS)

    one = found(1.0).norms
    balanced = one["kd"] / one["rkd"]
    assert found(1000 * balanced).complaints == []
    assert "kd is outweighed" in found(100_000 * balanced).complaints[-1]


def test_soft_targets_that_outweigh_the_labels_say_what_these_say():
    objective = Objective(1.0, (KD(weight=1000.0),))
    norms = gradient_norms(network(), objective, INPUTS, Knowledge(ANSWERS), LABELS)
    assert 100 < norms["kd"] / norms["cross_entropy"] < 10_000
    assert complaints(objective) == []


def test_a_suggested_weight_is_written_as_people_do():
    (complaint,) = complaints(Objective(1.0, (KD(weight=1e-6),)))
    assert re.search(r"try kd.weight: 0\.\d+|try kd.weight: \d+,", complaint)


def test_what_a_scheme_adds_is_neither_outweighed_nor_outweighs():
    class Own(Objective):
        def terms(self, *given, **more):
            terms = super().terms(*given, **more)
            small, large = 1e-9 * terms["cross_entropy"], 1e9 * terms["kd"]
            return terms | {"exits kd": small, "exits": large, "exits hint": 0 * large}

    (complaint,) = complaints(Own(1.0, (KD(),)))
    assert complaint.startswith("exits hint gives the student no gradient")


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)])
def test_a_teacher_that_is_not_in_evaluation_mode_is_noticed(layer):
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, CLASSES))

    def ask(inputs):
        with torch.no_grad():
            return teacher(inputs)

    (complaint,) = complaints(answers=ask(INPUTS), again=Knowledge(ask(INPUTS[: N // 2])))
    assert "not in evaluation mode" in complaint
    teacher.eval()
    assert complaints(answers=ask(INPUTS), again=Knowledge(ask(INPUTS[: N // 2]))) == []


def test_a_store_that_answers_for_other_views_is_noticed():
    (complaint,) = complaints(stored=Knowledge(ANSWERS.roll(1, 0)))
    assert "edgekd knowledge verify" in complaint
    assert complaints(stored=Knowledge(ANSWERS.half().float())) == []


def test_a_store_that_keeps_a_part_is_held_against_that_part():
    part = Knowledge(ANSWERS.clamp(min=0))
    assert complaints(stored=part, expected=part) == []
    assert len(complaints(stored=part)) == 1


@pytest.mark.parametrize(
    ("classes", "share", "near"), [(2, 0.77, False), (2, 0.53, True), (3, 0.55, False)]
)
def test_of_few_classes_a_teacher_that_knows_something_is_not_near_chance(classes, share, near):
    found = complaints(teacher=teacher_accuracy(share, total=1000, classes=classes))
    assert bool(found) == near


def test_beside_features_that_pull_harder_soft_targets_may_speak_for_the_labels():
    student, rkd = network(), METHODS.get("rkd")
    objective = Objective(1e-4, (KD(), rkd(weight=0.1, taps=[("0", "0")])))
    known = Knowledge(ANSWERS, {"0": torch.randn(N, 8, generator=torch.Generator().manual_seed(1))})
    found = examine(student, objective, Distill(), teacher_accuracy(), INPUTS, known, LABELS)
    assert found.norms["rkd"] > found.norms["kd"] > 100 * found.norms["cross_entropy"]
    assert found.complaints == []


def test_a_student_that_knows_more_than_the_teacher_is_noticed():
    class Knowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x) + 20 * nn.functional.one_hot(LABELS, CLASSES)

    (complaint,) = [c for c in complaints(student=Knowing()) if "already beats" in c]
    assert complaint.startswith("the student already beats the teacher (100% of a batch right")


def test_the_gradients_are_told_in_one_line():
    assert (
        gradient_line({"cross_entropy": 0.125, "kd": 3}) == "gradients: cross_entropy 0.125, kd 3"
    )


def test_a_loss_that_prepares_itself_first_is_looked_at_when_it_teaches_and_left_as_it_was():
    from dataclasses import replace

    from edgekd.models.resolve import build

    student, teacher = (
        build("zoo:resnet8", {}, input_shape=(1, 8, 8), classes=CLASSES, seed=seed, base=None)
        for seed in (0, 1)
    )
    images = torch.randn(N, 1, 8, 8, generator=GENERATOR)
    objective = Objective(0.1, (KD(), METHODS.get("ft")(), METHODS.get("crd")(negatives=50)))
    objective.prepare(student, teacher.eval(), images[:4], 0, population=LABELS)
    from edgekd.distill.taps import Tapped

    with torch.no_grad(), Tapped(teacher, objective.teacher_taps) as tapped:
        known = replace(Knowledge(*tapped(images)), indices=torch.arange(N))
    before = {k: v.clone() for k, v in objective.trained.state_dict().items()}
    norms = gradient_norms(student, objective, images, known, LABELS)
    assert set(norms) == {"cross_entropy", "kd", "ft", "crd"}
    assert all(norm > 0 for norm in norms.values())
    after = objective.trained.state_dict()
    assert all(torch.equal(before[k], v) for k, v in after.items())


def test_epochs_that_are_too_few_for_a_warm_up_or_an_initialisation_are_noticed():
    dkd = METHODS.get("dkd")
    (complaint,) = complaints(Objective(1.0, (dkd(),)), epochs=5)
    assert "dkd rises over 20 epochs, and there are 5: it ends at 25% of it" in complaint
    assert complaints(Objective(1.0, (dkd(),)), epochs=20) == []
    objective = Objective(0.1, (KD(), KD(alone=8)))
    assert "kd is alone for 8 of 10 epochs, which leaves 2" in complaints(objective, epochs=10)[0]
    assert complaints(objective, epochs=11) == []


def test_where_no_sample_has_a_label_nothing_is_said_of_losses_to_labels():
    nothing = torch.full_like(LABELS, -1)
    objective = Objective(0.1, (KD(),))
    found = examine(
        network(), objective, Distill(), None, INPUTS, Knowledge(ANSWERS), nothing
    ).complaints
    assert not any("cross_entropy" in complaint for complaint in found)
