import math

import pytest
import torch
from torch.nn import functional as F

from edgekd.distill.method import Knowledge
from edgekd.distill.methods.kd import KD

N, C = 6, 5


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(N, C, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(N, C, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def loss_of(student, teacher, temperature):
    labels = torch.zeros(len(student), dtype=torch.long)
    return KD(temperature=temperature)(Knowledge(student), Knowledge(teacher), labels)


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_the_loss_equals_a_brute_force_loop(logits, T):
    student, teacher = logits
    total = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(x / T) / sum(math.exp(y / T) for y in z) for x in z]
        p = [math.exp(x / T) / sum(math.exp(y / T) for y in v) for x in v]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert loss_of(student, teacher, T).item() == pytest.approx(T**2 * total / N, rel=1e-12)


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_the_gradient_is_the_closed_form_T_times_q_minus_p(logits, T):
    student, teacher = logits
    loss_of(student, teacher, T).backward()
    expected = T * (F.softmax(student.detach() / T, 1) - F.softmax(teacher / T, 1)) / N
    torch.testing.assert_close(student.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_keeps_its_size_when_the_temperature_grows(logits):
    student, teacher = logits
    sizes = []
    for T in (20.0, 200.0):
        student.grad = None
        loss_of(student, teacher, T).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_at_high_temperature_it_matches_logits_as_hinton_derives(logits):
    student, teacher = logits
    loss_of(student, teacher, 1000.0).backward()
    z = student.detach() - student.detach().mean(1, keepdim=True)
    v = teacher - teacher.mean(1, keepdim=True)
    torch.testing.assert_close(student.grad, (z - v) / C / N, rtol=1e-2, atol=2e-3)


def test_it_is_the_batch_mean_not_the_mean_over_classes(logits):
    student, teacher = logits
    twice = loss_of(torch.cat([student, student]), torch.cat([teacher, teacher]), 4.0)
    torch.testing.assert_close(twice, loss_of(student, teacher, 4.0))


def test_it_is_zero_for_equal_logits_and_finite_for_extreme_ones(logits):
    student, _ = logits
    assert loss_of(student, student.detach(), 4.0).item() == pytest.approx(0, abs=1e-12)
    extreme = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float32)
    assert torch.isfinite(loss_of(extreme, -extreme, 1.0))
