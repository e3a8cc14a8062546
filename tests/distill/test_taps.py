"""Taps: found, read and left without a trace; regressors trained and resumed with the student."""

import pytest
import torch
from torch import nn

from edgekd.config.schema import Augment, Config, Data, Training
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill.method import METHODS, Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped, pair_stages, parse, stages
from edgekd.distill.trainer import train
from edgekd.distill.workshop import population
from edgekd.errors import UsageError
from edgekd.models.resolve import build
from edgekd.progress import Silent

INPUTS = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def net(name, shape=(1, 16, 16), seed=0, **args):
    return build(f"zoo:{name}", args, input_shape=shape, classes=10, seed=seed, base=None)


class TestTapped:
    def test_it_reads_outputs_inputs_and_the_penultimate_vector(self):
        model = net("resnet8").eval()
        with Tapped(model, ["layer2", "layer3:input", "penultimate"]) as tapped:
            logits, seen = tapped(INPUTS)
        assert torch.equal(logits, model(INPUTS))
        assert seen["layer2"].shape == (4, 32, 8, 8)
        assert torch.equal(seen["layer3:input"], seen["layer2"])
        assert torch.equal(model.fc(seen["penultimate"]), logits)

    def test_the_model_is_left_as_it_was(self):
        model = net("resnet8")
        with pytest.raises(RuntimeError, match="stop"), Tapped(model, ["layer1"]):
            raise RuntimeError("stop")
        assert not any(m._forward_hooks for m in model.modules())

    def test_a_tap_that_does_not_exist_suggests_the_nearest(self):
        with pytest.raises(UsageError, match=r"no tap 'layer9'.*did you mean 'layer"):
            parse("layer9", net("resnet8"))
        with pytest.raises(UsageError, match="no tap 'layer1:side'"):
            parse("layer1:side", net("resnet8"))
        with pytest.raises(UsageError, match="no linear layer"):
            parse("penultimate", nn.Conv2d(1, 1, 1))

    def test_a_tap_that_is_not_reached_or_gives_no_tensor_says_so(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused, self.pair = nn.Linear(1, 1), Pair()

            def forward(self, x):
                return self.pair(x)[0]

        class Pair(nn.Module):
            def forward(self, x):
                return x, x

        with (
            pytest.raises(UsageError, match="'unused' is not reached"),
            Tapped(Odd(), ["unused"]) as t,
        ):
            t(INPUTS)
        with pytest.raises(UsageError, match="'pair' gives a tuple"), Tapped(Odd(), ["pair"]) as t:
            t(INPUTS)


class TestStages:
    @pytest.mark.parametrize("name", ["resnet8", "resnet20x2"])
    def test_of_residual_networks_they_are_the_papers(self, name):
        assert stages(net(name), INPUTS) == ["layer1", "layer2", "layer3"]

    def test_of_preactivation_networks_they_are_what_enters_the_next_stage(self):
        assert stages(net("wrn16-1"), INPUTS) == ["layer2.0.bn1", "layer3.0.bn1", "bn"]

    @pytest.mark.parametrize(
        "name", ["vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "dscnn"]
    )
    def test_other_families_have_one_per_size(self, name):
        model = net(name)
        found = stages(model, INPUTS)
        with Tapped(model.eval(), found) as tapped:
            sizes = [tuple(f.shape[2:]) for f in tapped(INPUTS)[1].values()]
        assert sizes == sorted(set(sizes), reverse=True)
        assert len(found) >= 2

    def test_networks_without_maps_have_none(self):
        assert stages(net("mlp"), INPUTS) == []

    def test_pairs_are_made_from_the_end(self):
        assert pair_stages(["a", "b", "c"], ["x", "y"]) == [("b", "x"), ("c", "y")]


def test_taps_are_read_from_yaml_in_both_spellings():
    methods = [
        {"rkd": {"tap": ["penultimate", "fc:input"]}},
        {"at": {"taps": [["a", "b"], ["c", "d"]]}},
    ]
    config = Config.model_validate({"distill": {"methods": methods}})
    rkd, at = config.distill.methods.entries
    assert rkd.taps == [("penultimate", "fc:input")]
    assert at.taps == [("a", "b"), ("c", "d")]
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again.distill.methods == config.distill.methods
    with pytest.raises(ValueError, match="tap or taps, not both"):
        Config.model_validate({"distill": {"methods": [{"at": {"tap": ["a", "b"], "taps": []}}]}})


def test_a_method_without_a_place_in_the_model_says_what_to_do():
    objective = Objective(0.1, (METHODS.get("at")(),))
    with pytest.raises(UsageError, match=r"at needs feature maps(.|\n)*give taps"):
        objective.prepare(net("mlp"), net("resnet8"), INPUTS, seed=0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(Data(limit=200), 0, tmp_path_factory.mktemp("base"))


SMALL = {"ft": {"alone": 1}, "crd": {"negatives": 64, "dim": 8}}


class StopAfter(Silent):
    def __init__(self, steps):
        self.left = steps

    def advance(self, amount=1, **figures):
        if amount:
            self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


def distill(digits, path, names=("fitnet", "vid", "rkd", "crd", "ft"), progress=None):
    student = net("dscnn", (1, 8, 8), seed=1, width=4)
    teacher = net("resnet8", (1, 8, 8), seed=2).eval()
    objective = Objective(
        0.1, (KD(), *(METHODS.get(name)(**SMALL.get(name, {})) for name in names))
    )
    objective.prepare(
        student, teacher, digits.tensor(digits.train[:4]), seed=0, population=population(digits)
    )
    before = {k: v.clone() for k, v in objective.trained.state_dict().items()}
    with Tapped(teacher, objective.teacher_taps) as tapped:

        def ask(inputs, indices, view):
            with torch.no_grad():
                return Knowledge(*tapped(inputs), indices=indices)

        history = train(
            student, digits, Views(digits, Augment(), 0), objective,
            Training(epochs=3, batch_size=32, threads=1, checkpoint_every=0.0, learning_rate=1e-3),
            seed=0, checkpoint=path / "c.pt", progress=progress or Silent(), name="student",
            teacher=ask,
        )  # fmt: skip
    return student, objective, before, history


def test_regressors_are_trained_with_the_student_and_every_term_is_logged(digits, tmp_path):
    student, objective, before, history = distill(digits, tmp_path)
    assert set(objective.trained) == {"fitnet", "vid", "crd", "ft"}
    moved = [
        name
        for name, value in objective.trained.named_parameters()
        if not torch.equal(value, before[name])
    ]
    assert moved == [name for name, _ in objective.trained.named_parameters()]
    assert set(history.epochs[0].losses) == {"ft"}  # alone with its paraphraser
    assert set(history.epochs[1].losses) == {
        "cross_entropy", "kd", "fitnet", "vid", "rkd", "crd", "ft",
    }  # fmt: skip
    assert set(student.state_dict()) == set(net("dscnn", (1, 8, 8), width=4).state_dict())
    assert not any(m._forward_hooks for m in student.modules())


def test_killed_it_goes_on_to_the_same_weights_regressors_included(digits, tmp_path):
    whole, objective, _, _ = distill(digits, tmp_path / "a")
    with pytest.raises(RuntimeError, match="power cut"):
        distill(digits, tmp_path / "b", progress=StopAfter(7))
    resumed, again, _, _ = distill(digits, tmp_path / "b")
    for a, b in ((whole, resumed), (objective.trained, again.trained)):
        assert all(
            torch.equal(x, y)
            for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )
