"""The losses on logits against brute-force loops that follow the papers' formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from edgekd.distill.method import METHODS, Knowledge
from edgekd.distill.methods.dist import DIST
from edgekd.distill.methods.dkd import DKD
from edgekd.distill.methods.kd import KD
from edgekd.distill.methods.logits import Logits

N, C = 7, 5
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])

LOGIT_METHODS = [
    name
    for name in METHODS.names()
    if METHODS.get(name).needs == {"logits"} and not METHODS.get(name).maps
]


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    z, v = (2 * torch.randn(N, C, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), v


def value(method, z, v):
    return method(Knowledge(z), Knowledge(v), LABELS)


def softmax(row, T):
    exponentials = [math.exp(x / T) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_logits_is_the_limit_of_kd_at_high_temperature(pair):
    z, v = pair
    (limit,) = torch.autograd.grad(value(Logits(), z, v), z)
    (hot,) = torch.autograd.grad(value(KD(temperature=1000.0), z, v), z)
    torch.testing.assert_close(hot, limit, rtol=1e-2, atol=1e-3)
    zero_mean = z.detach() - z.detach().mean(1, keepdim=True) - v + v.mean(1, keepdim=True)
    torch.testing.assert_close(limit, zero_mean / (N * C))


def test_logits_ignores_a_constant_added_to_all_classes(pair):
    z, v = pair
    torch.testing.assert_close(value(Logits(), z + 3, v - 5), value(Logits(), z, v))


def test_standardized_kd_ignores_shift_and_scale_of_the_logits(pair):
    z, v = pair
    method = KD(temperature=2.0, standardize=True, weight=9.0)
    torch.testing.assert_close(value(method, 3 * z + 1, v / 2 - 4), value(method, z, v))
    total = 0.0
    for row_z, row_v in zip(z.tolist(), v.tolist(), strict=True):
        rows = [(np.array(r) - np.mean(r)) / np.std(r, ddof=1) for r in (row_z, row_v)]
        total += kl(softmax(rows[1], 2.0), softmax(rows[0], 2.0))
    assert value(method, z, v).item() == pytest.approx(4 * total / N, rel=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
def test_dkd_equals_a_brute_force_loop(pair, alpha, beta):
    z, v = pair
    T, tckd, nckd = 4.0, 0.0, 0.0
    for row_z, row_v, t in zip(z.tolist(), v.tolist(), LABELS.tolist(), strict=True):
        q, p = softmax(row_z, T), softmax(row_v, T)
        tckd += kl([p[t], 1 - p[t]], [q[t], 1 - q[t]])
        rest_z, rest_v = row_z[:t] + row_z[t + 1 :], row_v[:t] + row_v[t + 1 :]
        nckd += kl(softmax(rest_v, T), softmax(rest_z, T))
    expected = T**2 * (alpha * tckd + beta * nckd) / N
    assert value(DKD(alpha=alpha, beta=beta), z, v).item() == pytest.approx(expected, rel=1e-10)


def test_dkd_with_the_papers_weight_for_nckd_is_kd(pair):
    """Eq. 6: KL = TCKD + (1 − p_t)·NCKD; checked sample by sample."""
    z, v = pair
    for i in range(N):
        row = slice(i, i + 1)
        p_t = (v[row] / 4).softmax(1)[0, LABELS[i]].item()
        method = DKD(alpha=1.0, beta=1 - p_t)
        decoupled = method(Knowledge(z[row]), Knowledge(v[row]), LABELS[row])
        kd = KD(temperature=4.0)(Knowledge(z[row]), Knowledge(v[row]), LABELS[row])
        torch.testing.assert_close(decoupled, kd)


def test_dkd_is_finite_for_a_teacher_that_is_certain():
    v = torch.full((N, C), -50.0)
    v[torch.arange(N), LABELS] = 50.0
    z = v.clone().requires_grad_()
    loss = value(DKD(), z, v)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_dist_equals_a_brute_force_loop(pair):
    z, v = pair
    tau = 4.0
    q = np.array([softmax(row, tau) for row in z.tolist()])
    p = np.array([softmax(row, tau) for row in v.tolist()])
    rows = np.mean([np.corrcoef(q[i], p[i])[0, 1] for i in range(N)])
    columns = np.mean([np.corrcoef(q[:, j], p[:, j])[0, 1] for j in range(C)])
    expected = tau**2 * (2 * (1 - rows) + 3 * (1 - columns))
    assert value(DIST(beta=2.0, gamma=3.0), z, v).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_every_method_moves_the_student_and_never_the_teacher(name, pair):
    z, v = pair
    v = v.clone().requires_grad_()
    loss = value(METHODS.get(name)(), z, v.detach())
    loss.backward()
    assert loss.ndim == 0
    assert z.grad.abs().sum() > 0
    assert v.grad is None


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_every_method_is_least_when_the_student_is_the_teacher(name, pair):
    z, v = pair
    method = METHODS.get(name)()
    assert value(method, v.clone(), v).item() == pytest.approx(0, abs=1e-9)
    assert value(method, z, v).item() > 0


def test_warm_up_raises_the_weight_linearly(pair):
    from edgekd.distill.objective import Objective

    z, v = pair
    objective = Objective(0.0, (DKD(warmup=20),))
    terms = [
        objective.terms(Knowledge(z), Knowledge(v), LABELS, epoch)["dkd"].item()
        for epoch in (0, 9, 19, 50)
    ]
    assert [t / terms[-1] for t in terms] == pytest.approx([1 / 20, 0.5, 1, 1])


@pytest.mark.parametrize("confidence", [1.0, 0.5, 0.2])
def test_mlkd_equals_a_brute_force_loop(pair, confidence):
    z, v = pair
    n, classes = z.shape
    sure = [max(softmax(row, 1.0)) for row in v.tolist()]
    seen = [sum(softmax(row, 1.0)[c] for row in v.tolist()) for c in range(classes)]
    samples = [s <= np.quantile(sure, confidence) for s in sure]
    of = [s <= np.quantile(seen, confidence) for s in seen]
    assert sum(samples) == {1.0: 7, 0.5: 4, 0.2: 2}[confidence]
    # 1 for 64 samples and 100 classes.
    r = 64 * classes / (100 * n)
    expected = 0.0
    for T in (2.0, 3.0):
        q, p = (z / T).softmax(1).tolist(), (v / T).softmax(1).tolist()
        for i in range(n):
            if samples[i]:
                expected += T**2 * kl(p[i], q[i]) / n
            for j in range(n):
                a, b = (sum(m[i][c] * m[j][c] for c in range(classes)) for m in (p, q))
                expected += r * samples[i] * (a - b) ** 2 / n
        for c in range(classes):
            for d in range(classes):
                a, b = (sum(m[i][c] * m[i][d] for i in range(n)) for m in (p, q))
                expected += r**2 * of[c] * (a - b) ** 2 / classes
    method = METHODS.get("mlkd")(temperatures=[2.0, 3.0], confidence=confidence)
    assert value(method, z, v).item() == pytest.approx(expected, rel=1e-10)


def test_hard_is_cross_entropy_with_the_teachers_answers(pair):
    z, v = pair
    expected = -sum(z.log_softmax(1)[i, v[i].argmax()].item() for i in range(len(z))) / len(z)
    assert value(METHODS.get("hard")(), z, v).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("classes", "samples"), [(2, 64), (2, 256), (10, 256), (100, 64), (200, 64)]
)
def test_mlkd_pulls_about_as_hard_whatever_the_batch_and_the_classes(classes, samples):
    generator = torch.Generator().manual_seed(0)
    v = 3 * torch.randn(samples, classes, generator=generator)
    z = torch.randn(samples, classes, generator=generator).requires_grad_()
    kd, mlkd = (
        torch.autograd.grad(method(Knowledge(z), Knowledge(v), LABELS), z)[0].norm()
        for method in (KD(), METHODS.get("mlkd")())
    )
    assert 0.3 < mlkd / kd < 30


@pytest.mark.parametrize("name", LOGIT_METHODS)
@pytest.mark.parametrize("more", [{}, {"standardize": True}])
def test_a_student_whose_last_layer_starts_at_zero_is_not_blown_up(name, more):
    if more and name != "kd":
        return
    generator = torch.Generator().manual_seed(0)
    v = 3 * torch.randn(64, 20, generator=generator)
    labels = torch.randint(0, 20, (64,), generator=generator)
    method = METHODS.get(name)(**more)
    norms = []
    for scale in (0.0, 1.0):
        z = (scale * torch.randn(64, 20, generator=generator)).requires_grad_()
        loss = method(Knowledge(z), Knowledge(v), labels)
        norms.append(torch.autograd.grad(loss, z)[0].norm())
    assert 0 < norms[0] < 200 * norms[1]
