"""Channel-wise distillation, and per-pixel distillation by `kd`, against brute-force loops in float64."""

import math

import pytest
import torch

from edgekd.config.schema import Config
from edgekd.distill.method import METHODS, Knowledge
from edgekd.errors import UsageError
from edgekd.tasks.check import check_task, fits

N, C, H, W = 3, 4, 5, 6
GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(N, C, H, W, dtype=torch.float64, generator=GENERATOR)
V = torch.randn(N, C, H, W, dtype=torch.float64, generator=GENERATOR)
LABELS = torch.zeros(N, H, W, dtype=torch.int64)


def loss(name, z, **parameters):
    return METHODS.get(name)(**parameters)(Knowledge(z), Knowledge(V), LABELS)


def softmax(values):
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_cwd_is_the_divergence_of_every_channel_over_its_positions(T):
    total = 0.0
    for n in range(N):
        for c in range(C):
            of_student = softmax([v / T for v in Z[n, c].flatten().tolist()])
            of_teacher = softmax([v / T for v in V[n, c].flatten().tolist()])
            total += kl(of_teacher, of_student)
    wanted = T**2 / C * total / N
    assert loss("cwd", Z, temperature=T).item() == pytest.approx(wanted, rel=1e-12)


def test_the_gradient_of_cwd_is_t_by_c_of_the_difference():
    T = 3.0
    z = Z.clone().requires_grad_()
    loss("cwd", z, temperature=T).backward()
    q, p = ((x.flatten(2) / T).softmax(2).view_as(x) for x in (Z, V))
    torch.testing.assert_close(z.grad, T / (C * N) * (q - p))


def test_cwd_does_not_see_a_constant_added_to_a_channel():
    moved = Z + torch.randn(1, C, 1, 1, dtype=torch.float64, generator=GENERATOR)
    torch.testing.assert_close(loss("cwd", moved), loss("cwd", Z))


def test_kd_of_maps_is_the_mean_over_pixels():
    T, total = 2.0, 0.0
    for n in range(N):
        for i in range(H):
            for j in range(W):
                q, p = (softmax([v / T for v in x[n, :, i, j].tolist()]) for x in (Z, V))
                total += kl(p, q)
    wanted = T**2 * total / (N * H * W)
    assert loss("kd", Z, temperature=T).item() == pytest.approx(wanted, rel=1e-12)


def test_only_what_holds_for_maps_is_for_segmentation():
    working = {name for name in METHODS.names() if fits(METHODS.get(name), "segmentation")}
    assert {"kd", "cwd", "hard", "logits", "fitnet", "at"} <= working
    assert not {"dkd", "dist", "mlkd", "crd", "mse", "rkd", "pkt", "cc", "tinybert"} & working


def test_cwd_is_refused_for_classes_and_dkd_for_pixels():
    with pytest.raises(UsageError, match="cwd is for segmentation, and this data is for class"):
        check_task(Config.model_validate({"distill": {"methods": ["cwd"]}}), "classification", ())
    with pytest.raises(UsageError, match="dkd is not for segmentation"):
        check_task(Config.model_validate({"distill": {"methods": ["dkd"]}}), "segmentation", ())
