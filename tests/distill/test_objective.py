import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from edgekd.config.schema import Distill
from edgekd.distill.method import Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.methods.logits import Logits
from edgekd.distill.objective import Objective


def test_the_loss_is_alpha_cross_entropy_plus_one_minus_alpha_t_squared_kl():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 5, generator=generator) for _ in range(2))
    labels = torch.arange(8) % 5
    alpha, T = 0.3, 4.0
    objective = Objective(alpha, (KD(temperature=T, weight=1 - alpha),))
    terms = objective.terms(Knowledge(student), Knowledge(teacher), labels)
    kl = F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1), reduction="batchmean")
    expected = alpha * F.cross_entropy(student, labels) + (1 - alpha) * T**2 * kl
    assert set(terms) == {"cross_entropy", "kd"}
    torch.testing.assert_close(sum(terms.values()), expected)


def test_without_methods_no_teacher_is_asked():
    objective = Objective()
    assert not objective.needs_teacher
    terms = objective.terms(Knowledge(torch.zeros(2, 3)), None, torch.tensor([0, 1]))
    assert set(terms) == {"cross_entropy"}


def test_alpha_zero_leaves_the_hard_labels_out():
    objective = Objective(0.0, (KD(),))
    terms = objective.terms(
        Knowledge(torch.zeros(2, 3)), Knowledge(torch.ones(2, 3)), torch.tensor([0, 1])
    )
    assert set(terms) == {"kd"}


def test_a_method_that_is_alone_has_the_first_epochs_and_no_later_one():
    objective = Objective(0.5, (Logits(alone=2), KD()))
    known = Knowledge(torch.zeros(2, 3)), Knowledge(torch.ones(2, 3)), torch.tensor([0, 1])
    assert [set(objective.terms(*known, epoch)) for epoch in (0, 1, 2, 9)] == [
        {"logits"}, {"logits"}, {"cross_entropy", "kd"}, {"cross_entropy", "kd"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"epochs": 30, "methods": ["fsp"]}, "leaves none of 30 for the rest"),
        ({"epochs": 40, "alpha": 0.0, "methods": ["fsp"]}, "no loss any more"),
    ],
)
def test_methods_that_are_alone_must_leave_something_to_train_with(distill, message):
    with pytest.raises(ValidationError, match=message):
        Distill.model_validate(distill)


def test_mixed_samples_take_the_cross_entropy_to_the_shares_of_their_classes():
    generator = torch.Generator().manual_seed(0)
    logits, share = torch.randn(4, 3, generator=generator), torch.tensor([1.0, 0.7, 0.5, 0.9])
    own, other = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    targets = share[:, None] * F.one_hot(own, 3) + (1 - share)[:, None] * F.one_hot(other, 3)
    terms = Objective(0.5).terms(Knowledge(logits), None, own, targets=targets)
    losses = [F.cross_entropy(logits, labels, reduction="none") for labels in (own, other)]
    expected = 0.5 * (share * losses[0] + (1 - share) * losses[1]).mean()
    torch.testing.assert_close(terms["cross_entropy"], expected)
