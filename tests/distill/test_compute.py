"""How steps are computed: what is fixed is kept, what is measured touches nothing, bf16 must agree."""

import pytest
import torch
from torch import nn

from edgekd.config.schema import Augment, Compute, Data, Training
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill import compute
from edgekd.distill.compute import choose, laid_out, place, teacher_precision
from edgekd.distill.method import METHODS
from edgekd.distill.objective import Objective
from edgekd.distill.trainer import train
from edgekd.distill.workshop import seen
from edgekd.errors import UsageError
from edgekd.progress import Silent
from edgekd.results import Computing
from edgekd.teachers.kinds.torch import TorchTeacher
from tests.heard import Heard

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (32,), generator=torch.Generator().manual_seed(1))


FIXED = Compute(device="cpu", precision="f32", channels_last=False, compile=False)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )  # fmt: skip


def clocked(monkeypatch, milliseconds, threads=None):
    """Steps take the given times. They are computed all the same, but where threads are told apart, of
    which there may be more than cores.
    """

    class Trial(compute._Trial):
        def step(self):
            if threads is None:
                super().step()
            self.wall = (threads or {}).get(torch.get_num_threads(), 0) / 1000
            return milliseconds[self.how.precision, self.how.channels_last] / 1000

    monkeypatch.setattr(compute, "_Trial", Trial)


TIMES = {
    ("f32", False): 400.0, ("f32", True): 200.0, ("bf16", False): 300.0, ("bf16", True): 100.0,
}  # fmt: skip


def test_a_short_training_is_computed_as_pytorch_does(monkeypatch):
    clocked(monkeypatch, TIMES)
    assert choose(Compute(device="cpu"), network(), X, Y, steps=10) == Computing()


def test_a_long_one_takes_what_is_clearly_faster_and_reports_what_it_measured(monkeypatch):
    clocked(monkeypatch, TIMES)
    found = choose(Compute(device="cpu"), network(), X, Y, steps=10**6)
    assert (found.precision, found.channels_last, found.compile) == ("bf16", True, False)
    assert found.milliseconds == {
        "f32": 400.0, "bf16": 300.0, "f32 channels-last": 200.0, "bf16 channels-last": 100.0,
    }  # fmt: skip
    assert str(found) == "cpu, bf16, channels-last"


@pytest.fixture
def threads():
    """Sets their number, and what it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("times", "best", "tried"),
    [
        ({8: 100, 4: 60, 2: 50, 1: 90}, 2, {8, 4, 2, 1}),  # where a container may use two of eight
        ({8: 100, 4: 95, 2: 10}, 8, {8, 4}),  # hardly faster: there it ends
        ({8: 100, 4: 60, 2: 40, 1: 20}, 1, {8, 4, 2, 1}),
    ],
)
def test_threads_are_halved_as_long_as_that_is_clearly_faster(threads, times, best, tried):
    class Trial:
        def step(self):
            self.wall = times[torch.get_num_threads()] / 1000

    threads(8)
    found, milliseconds = compute._threads(Trial())
    assert found == best
    assert milliseconds == {f"{n} thread{'s' if n > 1 else ''}": times[n] for n in tried}
    assert torch.get_num_threads() == 8


def test_threads_are_measured_where_they_may_be_and_it_pays(monkeypatch, threads):
    threads(2)
    clocked(monkeypatch, TIMES, {2: 100, 1: 50})
    found = choose(FIXED, network(), X, Y, steps=10**6, threads=True)
    assert (found.threads, str(found)) == (1, "cpu, f32, 1 thread")
    assert choose(FIXED, network(), X, Y, steps=10, threads=True) == Computing()
    assert choose(FIXED, network(), X, Y, steps=10**6).threads is None
    both = choose(Compute(device="cpu"), network(), X, Y, steps=10**6, threads=True)
    assert (both.precision, both.channels_last, both.threads) == ("bf16", True, 1)
    assert set(both.milliseconds) > {"bf16", "f32 channels-last", "2 threads", "1 thread"}


def test_a_training_takes_the_threads_that_were_chosen_also_when_it_goes_on(
    monkeypatch, threads, tmp_path
):
    threads(2)
    clocked(monkeypatch, TIMES, {2: 100, 1: 50})
    monkeypatch.setattr(compute, "WORTH_MEASURING", 1e-6)
    used = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            used.append(torch.get_num_threads())
            return self.fc(x.flatten(1))

    digits = load(Data(limit=100), 0, tmp_path)

    def run(until, threads=None):
        used.clear()
        config = Training(epochs=2, threads=threads, compute=FIXED)
        history = train(
            Watch(), digits, Views(digits, Augment(), 0), Objective(), config, seed=0,
            checkpoint=tmp_path / "checkpoint.pt", progress=Silent(), name="student", until=until,
        )  # fmt: skip
        assert torch.get_num_threads() == 2
        return history.computing.threads, used[-1]

    assert run(1) == (1, 1)
    monkeypatch.setattr(compute, "_threads", None)  # nothing is measured again
    assert run(2) == (1, 1)
    (tmp_path / "checkpoint.pt").unlink()
    assert run(1, threads=2) == (None, 2)


def test_what_is_hardly_faster_is_not_taken(monkeypatch):
    times = {("f32", False): 100, ("f32", True): 97, ("bf16", False): 90, ("bf16", True): 88}
    clocked(monkeypatch, times)
    found = choose(Compute(device="cpu"), network(), X, Y, steps=10**6)
    assert (found.precision, found.channels_last) == ("f32", False)


def test_bf16_that_changes_the_gradient_is_not_taken_however_fast(monkeypatch):
    class Sensitive(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            # The difference of two large numbers: nothing is left of it in bf16.
            return (self.net(x) + 1000.0) - 1000.0

    clocked(monkeypatch, TIMES)
    found = choose(Compute(device="cpu"), Sensitive(), X, Y, steps=10**6)
    assert (found.precision, found.channels_last) == ("f32", True)


def test_what_is_fixed_is_not_measured():
    fixed = Compute(device="cpu", precision="bf16", channels_last=True, compile=False)
    found = choose(fixed, network(), X, Y, steps=10**9)
    assert found == Computing(precision="bf16", channels_last=True)


def test_the_measurement_touches_nothing(monkeypatch):
    clocked(monkeypatch, TIMES)
    model = network().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    choose(Compute(device="cpu"), model, X, Y, steps=10**6)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        choose(Compute(device="cuda"), network(), X, Y, steps=1)


def test_layout_changes_the_strides_and_no_value():
    model, plain = network(), network()
    place(model, Computing(channels_last=True))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = laid_out(X, Computing(channels_last=True))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model.eval()(x), plain.eval()(X), atol=1e-5)
    place(model, Computing())
    assert model[0].weight.is_contiguous()


def test_a_teacher_is_rounded_only_where_its_answers_stay_the_same(monkeypatch):
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 4
    answers = {"f32": logits, "bf16": logits.bfloat16()}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert teacher_precision("auto", answers.__getitem__) == "bf16"
    assert teacher_precision("f32", answers.__getitem__) == "f32"
    changed = answers | {"bf16": logits + 0.5 * torch.randn(64, 10)}
    assert teacher_precision("auto", changed.__getitem__) == "f32"
    assert teacher_precision("bf16", changed.__getitem__) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert teacher_precision("auto", answers.__getitem__) == "f32"


def convolutional(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * 36, 10),
    )  # fmt: skip


def trained(path, taps=None, **settings):
    """From the labels, or with `taps` also from what passes there in a wider network."""
    digits = load(Data(limit=300), 0, path)
    model, objective, asked = convolutional(8, 0), Objective(), None
    if taps is not None:
        hint = METHODS.get("fitnet").model_validate({"taps": taps, "weight": 1.0})
        objective = Objective(1.0, (hint,))
        wider = convolutional(12, 1).eval()
        objective.prepare(model, wider, digits.tensor(digits.train[:4]), seed=0)
        asked = seen(TorchTeacher(wider), objective.teacher_taps)
    config = Training(epochs=4, threads=1, compute=Compute(device="cpu", **settings))
    history = train(
        model, digits, Views(digits, Augment(), 0), objective, config, seed=0,
        checkpoint=path / "checkpoint.pt", progress=Silent(), name="student", teacher=asked,
    )  # fmt: skip
    return model, history


def test_lower_precision_keeps_weights_and_losses_in_f32_and_learns_as_well(tmp_path):
    _, plain = trained(tmp_path / "a", precision="f32", channels_last=False)
    model, rounded = trained(tmp_path / "b", precision="bf16", channels_last=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.is_contiguous() for p in model.parameters())
    assert rounded.computing.precision == "bf16"
    a, b = plain.epochs[-1].losses["cross_entropy"], rounded.epochs[-1].losses["cross_entropy"]
    assert b == pytest.approx(a, rel=0.1)
    assert a != b


@pytest.mark.slow
def test_a_compiled_training_learns_the_same_at_its_taps_too(tmp_path):
    settings = {
        "taps": [["2", "2"], ["4:input", "4:input"]],
        "precision": "f32",
        "channels_last": False,
    }
    plain, expected = trained(tmp_path / "a", compile=False, **settings)
    model, history = trained(tmp_path / "b", compile=True, **settings)
    assert history.computing.compile
    for a, b in zip(expected.epochs, history.epochs, strict=True):
        assert set(b.losses) == {"cross_entropy", "fitnet"}
        assert b.losses == pytest.approx(a.losses, rel=1e-3)
    for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-3)


def test_without_a_compiler_the_step_is_not_compiled_and_that_is_said(tmp_path, monkeypatch):
    def broken(function):
        def fail(*args):
            raise RuntimeError("no g++")

        return fail

    heard = Heard()
    monkeypatch.setattr(torch, "compile", broken)
    assert compute.compiled(len, heard) is len
    assert "not compiled" in heard.lines[0]
