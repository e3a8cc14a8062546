"""Every task's score and loss against an independent reference, and its intervals against repetition."""

import numpy as np
import pytest
import torch
from sklearn.metrics import d2_pinball_score, jaccard_score, mean_pinball_loss, r2_score

from edgekd.errors import UsageError
from edgekd.tasks.task import TASKS, of

RANDOM = np.random.default_rng(0)


def numbers(n=200, outputs=2):
    y = RANDOM.normal([100.0, -3.0][:outputs], [20.0, 0.1][:outputs], (n, outputs))
    return y.astype(np.float32), (y + RANDOM.normal(0, [8.0, 0.05][:outputs], y.shape)).astype(
        np.float32
    )


def scenes(n=30, classes=4, size=8):
    labels = RANDOM.integers(0, classes, (n, size, size))
    logits = RANDOM.normal(size=(n, classes, size, size)) + 2 * np.eye(classes)[labels].transpose(
        0, 3, 1, 2
    )
    return labels, logits.astype(np.float32)


def test_r2_is_that_of_scikit_learn():
    y, z = numbers()
    assert of("regression").value(z, y) == pytest.approx(r2_score(y, z), abs=1e-6)
    score = of("regression").score(z, y, 2)
    assert (score.metric, score.total, score.correct) == ("r2", 200, None)
    assert score.interval[0] < score.value < score.interval[1]


def test_squared_error_is_in_deviations_of_the_labels():
    y, z = numbers()
    scale = torch.tensor([20.0, 0.1])
    found = of("regression").loss(torch.from_numpy(z), torch.from_numpy(y), scale)
    assert found.item() == pytest.approx((((z - y) / [20, 0.1]) ** 2).mean(), rel=1e-5)


def test_r1_is_the_share_of_the_check_loss_that_is_explained():
    task = of("quantile:0.1,0.5,0.9")
    y, z = numbers(outputs=1)
    outputs = z + np.float32([-10, 0, 10])
    labels = np.repeat(y, 3, axis=1)
    wanted = [
        d2_pinball_score(y[:, 0], outputs[:, j], alpha=a) for j, a in enumerate((0.1, 0.5, 0.9))
    ]
    assert task.value(outputs, labels) == pytest.approx(np.mean(wanted), abs=1e-6)
    loss = task.loss(torch.from_numpy(outputs), torch.from_numpy(labels), None)
    pinball = [
        mean_pinball_loss(y[:, 0], outputs[:, j], alpha=a) for j, a in enumerate((0.1, 0.5, 0.9))
    ]
    assert loss.item() == pytest.approx(np.mean(pinball), rel=1e-5)


def test_check_loss_is_least_at_the_quantile():
    y = torch.from_numpy(RANDOM.exponential(size=(4000, 1)).astype(np.float32))
    q = torch.zeros(1, 2, requires_grad=True)
    task, optimizer = of("quantile:0.25,0.75"), torch.optim.SGD([q], 1.0)
    for _ in range(300):
        optimizer.zero_grad()
        task.loss(q.expand(4000, 2), y.expand(4000, 2), None).backward()
        optimizer.step()
    np.testing.assert_allclose(q[0].detach(), np.quantile(y, [0.25, 0.75]), atol=0.02)


def test_mean_iou_is_that_of_scikit_learn_without_pixels_that_have_no_label():
    labels, logits = scenes()
    answers = logits.argmax(1)
    task = of("segmentation")
    wanted = jaccard_score(labels.ravel(), answers.ravel(), average="macro")
    assert task.value(logits, labels) == pytest.approx(wanted)
    labels[RANDOM.random(labels.shape) < 0.3] = -1
    counted = labels.ravel() >= 0
    wanted = jaccard_score(labels.ravel()[counted], answers.ravel()[counted], average="macro")
    assert task.value(logits, labels) == pytest.approx(wanted)
    score = task.score(logits, labels, 4)
    by_class = jaccard_score(labels.ravel()[counted], answers.ravel()[counted], average=None)
    assert [a / b for a, b in score.per_class] == pytest.approx(list(by_class))


def test_a_class_that_is_nowhere_is_left_out_of_mean_iou():
    labels, logits = scenes(classes=3)
    more = np.concatenate([logits, np.full_like(logits[:, :1], -100)], axis=1)
    task = of("segmentation")
    assert task.value(more, labels) == pytest.approx(task.value(logits, labels))


def test_pixels_without_a_label_give_no_gradient():
    labels, logits = scenes(n=2)
    labels[0] = -1
    z = torch.from_numpy(logits).requires_grad_()
    of("segmentation").loss(z, torch.from_numpy(labels.astype(np.int16)), None).backward()
    assert z.grad[0].abs().max() == 0
    assert z.grad[1].abs().max() > 0


@pytest.mark.parametrize("name", ["regression", "segmentation"])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(name):
    task, inside = of(name), 0
    if name == "regression":
        y, z = numbers(20_000, 1)
    else:
        y, z = scenes(4000, 3, 4)
    truth = task.value(z, y)
    for _ in range(60):
        drawn = RANDOM.choice(len(y), 150, replace=False)
        low, high = task.score(z[drawn], y[drawn], 3).interval
        inside += low <= truth <= high
    # 57 of 60 are expected; fewer than 49 happen in 1 of 10 000 sets.
    assert inside >= 49


def test_what_was_lost_is_told_more_closely_than_two_scores_apart():
    y, z = numbers(400, 1)
    worse = z + RANDOM.normal(0, 1, z.shape).astype(np.float32)
    task = of("regression")
    lost, (low, high) = task.lost(z, worse, y)
    assert lost == pytest.approx(task.value(z, y) - task.value(worse, y))
    assert low <= lost <= high
    wide = task.score(z, y, 1).interval
    assert high - low < (wide[1] - wide[0]) / 2
    assert task.lost(z, z, y) == (0.0, (0.0, 0.0))


def test_intervals_are_the_same_whenever_they_are_computed():
    labels, logits = scenes()
    assert of("segmentation").score(logits, labels, 4) == of("segmentation").score(
        logits, labels, 4
    )


def test_an_unknown_task_is_named():
    with pytest.raises(UsageError, match=r"unknown task 'regresion'; did you mean 'regression'\?"):
        of("regresion")


def test_every_task_has_its_own_metric():
    metrics = [TASKS.get(name).metric for name in TASKS.names()]
    assert len(set(metrics)) == len(metrics) == 4
