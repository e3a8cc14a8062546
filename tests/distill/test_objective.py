import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from edgekd.config.load import validate
from edgekd.config.schema import Distill
from edgekd.distill.method import METHODS, Knowledge, MethodList
from edgekd.distill.methods.kd import KD
from edgekd.distill.methods.logits import Logits
from edgekd.distill.objective import Objective
from edgekd.errors import UsageError


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


# DESIGN §5, and what RepDistiller's tables were made with. Of `cc` the weight is another (see there).
DEFAULTS = {
    "kd": {"temperature": 4, "weight": 0.9},
    "logits": {"weight": 1},
    "hard": {"weight": 0.5},
    "dkd": {"alpha": 1, "temperature": 4, "beta": 8, "warmup": 20, "weight": 1},
    "dist": {"beta": 2, "gamma": 2, "temperature": 4, "weight": 1},
    "mlkd": {"temperatures": [2, 3, 4, 5, 6], "weight": 1},
    "fitnet": {"weight": 100},
    "at": {"weight": 1000},
    "sp": {"weight": 3000},
    "pkt": {"weight": 3e4},
    "rkd": {"distance": 25, "angle": 50, "weight": 1},
    "cc": {"weight": 10},
    "vid": {"weight": 1},
    "nst": {"weight": 50},
    "ab": {"alone": 30, "weight": 1},
    "ft": {"alone": 30, "weight": 200},
    "fsp": {"alone": 30, "weight": 50},
    "crd": {"temperature": 0.07, "momentum": 0.5, "weight": 0.8},
    "reviewkd": {"warmup": 20, "weight": 1},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_papers(name):
    found = METHODS.get(name)().model_dump()
    assert {key: found[key] for key in DEFAULTS[name]} == DEFAULTS[name]


def test_standardized_logits_have_the_temperature_and_weight_of_their_paper():
    standardized = MethodList.parse([{"kd": {"standardize": True}}]).entries[0]
    assert (standardized.temperature, standardized.weight) == (2, 9)
    given = MethodList.parse([{"kd": {"standardize": True, "temperature": 3.0}}]).entries[0]
    assert (given.temperature, given.weight) == (3, 9)


@pytest.mark.parametrize(
    ("methods", "weight"),
    [
        (["kd"], 0.1), (["hard"], 0.5), (["dkd"], 1), (["dist"], 1), (["rkd"], 1), (["reviewkd"], 1),
        (["kd", "rkd"], 0.1), ([], 1), (["hard", "at"], 0.5),
    ],
)  # fmt: skip
def test_the_labels_weigh_what_they_do_in_the_papers_unless_it_is_given(methods, weight):
    assert Distill(methods=methods, epochs=40).labels_weight == weight
    assert Distill(methods=methods, epochs=40, alpha=0.7).labels_weight == 0.7


@pytest.mark.parametrize("method", ["dist", "logits", "mlkd", {"kd": {"standardize": True}}])
def test_a_method_that_needs_every_logit_is_refused_where_only_some_are_kept(method):
    with pytest.raises(ValidationError, match=r"needs every logit, and knowledge\.top_k keeps 10"):
        Distill(methods=[method], knowledge={"top_k": 10})
    Distill(methods=["kd", "dkd"], knowledge={"top_k": 10}, epochs=40)


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


@pytest.mark.parametrize(
    ("distill", "text"),
    [
        ({"alpha": 0.0, "methods": [{"kd": {"weight": 0.0}}]}, "there is no loss to train with"),
        ({"methods": ["kd", {"ab": {"alone": 30}}], "epochs": 20}, "ab is alone for 30 epochs"),
        ({"methods": [{"mlkd": {"temperatures": [2.0, 0.0]}}]}, "mlkd.temperatures.1: .*greater"),
        ({"methods": [{"mlkd": {"temperatures": [-2.0]}}]}, "mlkd.temperatures.0: .*greater"),
        (
            {"methods": [{"rkd": {"tap": "penultimate"}}]},
            r"distill.methods.0.rkd: tap should be \[teacher tap, student tap\], not 'penultimate'",
        ),
        ({"methods": [{"fitnet": {"taps": []}}]}, "fitnet: taps has no pair: leave it out"),
        ({"threads": 10**21}, "threads: input should be less than or equal to 1024"),
        ({"knowledge": {"limit": "-1 GB"}}, "limit: should be 0 or more, not -1 GB"),
        ({"methods": [{"rkd": {"tap": ["penultimate"]}}]}, r"not \['penultimate'\]"),
    ],
)
def test_what_teaches_nothing_is_refused_when_it_is_read(distill, text):
    with pytest.raises(UsageError, match=text):
        validate({"distill": distill}, where="c.yaml", lines={})
