"""The training loop: schedules, selection, signals, and exact resumption at every step."""

import math

import pytest
import torch
from torch import nn

from edgekd.config.schema import Augment, Data, Training
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill.method import METHODS, Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.distill.trainer import learning_rate, predict, scheduled, train
from edgekd.errors import Interrupted, StageError
from edgekd.progress import Silent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(Data(limit=300), 0, tmp_path_factory.mktemp("base"))


def network(width=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(width, 10),
    )  # fmt: skip


def run(model, digits, path, objective=None, progress=None, teacher=None, **settings):
    config = Training(**({"epochs": 3, "learning_rate": 0.05, "threads": 1} | settings))
    return train(
        model,
        digits,
        Views(digits, Augment(crop=1, views=2), 0),
        objective or Objective(),
        config,
        seed=0,
        checkpoint=path / "checkpoint.pt",
        progress=progress or Silent(),
        name="student",
        teacher=teacher,
    )


class StopAfter(Silent):
    """Raises in the middle of a training, as a crash between two steps would."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, amount=1, **figures):
        if amount:
            self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_training_learns_and_its_history_is_complete(digits, tmp_path):
    model = network()
    history = run(model, digits, tmp_path, epochs=8)
    assert [e.epoch for e in history.epochs] == list(range(8))
    assert history.epochs[-1].losses["cross_entropy"] < history.epochs[0].losses["cross_entropy"]
    assert history.epochs[history.best].validation_accuracy > 0.5
    assert not model.training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("steps", [2, 4, 5, 9, 12])
def test_killed_after_any_step_it_goes_on_to_the_same_weights(digits, tmp_path, steps, optimizer):
    whole = network()
    expected = run(whole, digits, tmp_path / "a", optimizer=optimizer)
    with pytest.raises(RuntimeError, match="power cut"):
        run(
            network(), digits, tmp_path / "b", checkpoint_every=0.0, optimizer=optimizer,
            progress=StopAfter(steps),
        )  # fmt: skip
    resumed = network(seed=99)
    history = run(resumed, digits, tmp_path / "b", optimizer=optimizer)
    assert same(resumed.state_dict(), whole.state_dict())
    assert [e.losses for e in history.epochs] == [e.losses for e in expected.epochs]
    assert history.best == expected.best


def test_a_damaged_checkpoint_is_one_clear_error(digits, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(StageError, match="checkpoint cannot be read"):
        run(network(), digits, tmp_path)


def test_a_checkpoint_of_another_model_is_one_clear_error(digits, tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        run(network(), digits, tmp_path, checkpoint_every=0.0, progress=StopAfter(3))
    with pytest.raises(StageError, match="of another model"):
        run(network(width=17), digits, tmp_path)


def test_a_signal_saves_and_stops_between_two_steps(digits, tmp_path):
    import signal

    class Signal(Silent):
        def advance(self, amount=1, **figures):
            # To this thread: by os.kill it may come to another one, and late.
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="same command"):
        run(network(), digits, tmp_path, progress=Signal())
    assert (tmp_path / "checkpoint.pt").exists()
    whole, resumed = network(), network(seed=5)
    run(whole, digits, tmp_path / "whole")
    run(resumed, digits, tmp_path)
    assert same(whole.state_dict(), resumed.state_dict())


def test_weights_that_are_no_numbers_any_more_are_told_although_the_loss_is_one(digits, tmp_path):
    """√x of 0 has the value 0 and an infinite gradient."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.lost = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.layer(x.flatten(1)) + 0 * self.lost.sqrt()

    with pytest.raises(StageError, match=r"epoch 1: the weights 'lost' became .* not finite"):
        run(Root(), digits, tmp_path, epochs=1, batch_size=300)


def test_a_loss_that_is_not_finite_at_once_is_not_the_learning_rates_fault(digits, tmp_path):
    broken = network()
    broken[-1].weight.data.fill_(torch.inf)
    with pytest.raises(StageError, match=r"epoch 1, step 1: .*became nan") as caught:
        run(broken, digits, tmp_path)
    assert "learning_rate" not in str(caught.value)


def test_a_loss_that_is_not_finite_names_the_term_the_epoch_and_the_step(digits, tmp_path):
    with pytest.raises(StageError, match=r"cross_entropy.*(nan|inf)") as caught:
        run(network(), digits, tmp_path, learning_rate=1e30, warmup=0.0)
    assert "epoch 1, step" in str(caught.value)
    assert "learning_rate" in str(caught.value)


def test_the_latest_epoch_within_one_standard_error_of_the_best_on_validation_is_kept(tmp_path):
    digits = load(Data(limit=300, validation=0.5), 0, tmp_path)
    model = network()
    history = run(
        model, digits, tmp_path, epochs=9, learning_rate=0.3, schedule="constant", batch_size=16
    )
    accuracies = [e.validation_accuracy for e in history.epochs]
    best = max(accuracies)
    adjusted = (best * len(digits.validation) + 2) / (len(digits.validation) + 4)
    error = math.sqrt(adjusted * (1 - adjusted) / (len(digits.validation) + 4))
    assert history.best == max(i for i, a in enumerate(accuracies) if a >= best - error)
    assert history.best < 8  # this training ends with worse epochs
    labels = torch.from_numpy(digits.labels[digits.validation])
    found = (predict(model, digits, digits.validation).argmax(1) == labels).double().mean().item()
    assert found == accuracies[history.best]
    last = run(network(), digits, tmp_path / "last", epochs=6, select="last")
    assert last.best == 5


def test_teacher_and_student_see_the_same_views_and_the_teacher_gets_no_gradient(digits, tmp_path):
    seen = []
    teacher = network(32, seed=7).eval()

    def knowledge(inputs, indices, view):
        seen.append((inputs.clone(), indices, view))
        with torch.no_grad():
            return Knowledge(teacher(inputs))

    model = network()
    student_saw = []
    model.register_forward_pre_hook(
        lambda m, args: student_saw.append(args[0].clone()) if m.training and m is model else None
    )
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    run(model, digits, tmp_path, Objective(0.1, (KD(),)), teacher=knowledge)
    assert len(seen) == len(student_saw) > 0
    assert all(torch.equal(a[0], b) for a, b in zip(seen, student_saw, strict=True))
    assert {view for _, _, view in seen} == {0, 1}
    assert same(teacher.state_dict(), before)


def test_predict_leaves_the_mode_as_it_was_and_uses_evaluation_mode(digits):
    model = network().train()
    first, second = (predict(model, digits, digits.test) for _ in range(2))
    assert model.training
    assert torch.equal(first, second)


class TestLearningRate:
    def test_it_warms_up_linearly_then_falls_to_zero_along_a_cosine(self):
        config = Training(learning_rate=1.0, warmup=0.1)
        rates = [learning_rate(config, step, 1000) for step in range(1000)]
        assert max(rates) == pytest.approx(1.0)
        assert rates[:100] == sorted(rates[:100])
        assert rates[100:] == sorted(rates[100:], reverse=True)
        assert rates[550] == pytest.approx((1 + math.cos(math.pi * 450 / 900)) / 2)
        assert rates[-1] < 1e-5

    def test_the_published_recipe_steps_down_at_150_180_and_210_of_240_epochs(self):
        config = Training(learning_rate=0.05, warmup=0.0, schedule="step", epochs=240)
        rates = [learning_rate(config, epoch, 240) for epoch in (0, 149, 150, 179, 180, 210, 239)]
        assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-5, 5e-5])

    def test_constant_stays(self):
        config = Training(learning_rate=0.2, warmup=0.0, schedule="constant")
        assert {learning_rate(config, s, 10) for s in range(10)} == {0.2}

    def test_an_initialisation_has_a_schedule_of_its_own_and_the_rest_a_whole_one(self):
        config = Training(learning_rate=1.0, warmup=0.1, epochs=5)
        rates = [scheduled(config, step, 100, alone=2) for step in range(500)]
        assert rates[:200] == [learning_rate(config, step, 200) for step in range(200)]
        assert rates[200:] == [learning_rate(config, step, 300) for step in range(300)]
        assert scheduled(config, 250, 100, alone=0) == learning_rate(config, 250, 500)


def test_max_norm_bounds_the_weights_that_enter_a_unit_and_leaves_shorter_ones(digits, tmp_path):
    free, bound = network(), network()
    run(free, digits, tmp_path / "a", weight_decay=0.0)
    limit = free[1].weight.norm(dim=1).median().item()
    run(bound, digits, tmp_path / "b", weight_decay=0.0, max_norm=limit)
    assert bound[1].weight.norm(dim=1).max() <= limit + 1e-6
    assert bound[1].weight.norm(dim=1).min() < 0.99 * limit


def test_layers_that_an_initialisation_does_not_reach_are_trained_after_it(
    digits, tmp_path, monkeypatch
):
    """As by PyTorch's plain SGD, which starts each momentum with the first gradient there is."""

    def learned(folder):
        teacher, student = network(width=32, seed=1).eval(), network()
        first = METHODS.get("fitnet").model_validate({"alone": 1, "tap": ["1", "1"], "weight": 1.0})
        objective = Objective(0.1, (first, KD()))
        objective.prepare(student, teacher, digits.tensor(digits.train[:4]), seed=0)

        def taught(inputs, indices, view):
            with torch.no_grad(), Tapped(teacher, objective.teacher_taps) as tapped:
                return Knowledge(*tapped(inputs))

        history = run(student, digits, folder, objective, teacher=taught)
        return student, history

    fused, history = learned(tmp_path / "fused")
    assert [set(epoch.losses) for epoch in history.epochs[:2]] == [
        {"fitnet"},
        {"cross_entropy", "kd"},
    ]

    class Plain(torch.optim.SGD):
        def __init__(self, *args, fused, **options):
            super().__init__(*args, foreach=False, **options)
            self.new = True

        def step(self):
            if self.new:
                self.state.clear()
            self.new = False
            super().step()

    monkeypatch.setattr(torch.optim, "SGD", Plain)
    plain, _ = learned(tmp_path / "plain")
    for a, b in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
