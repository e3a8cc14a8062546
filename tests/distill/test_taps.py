"""Taps: found, read and left without a trace; regressors trained and resumed with the student."""

import itertools

import pytest
import torch
from torch import nn

from edgekd.config.schema import Augment, Config, Data, Training
from edgekd.data.resolve import load
from edgekd.data.views import Views
from edgekd.distill.method import METHODS, Knowledge, MethodList
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped, attention_weights, pair_stages, parse, penultimate, stages
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
            pytest.raises(UsageError, match=r"'unused' is not reached(.|\n)*stochastic depth"),
            Tapped(Odd(), ["unused"]) as t,
        ):
            t(INPUTS)
        with (
            pytest.raises(UsageError, match=r"'unused' is not reached[^\n]*$"),
            Tapped(Odd().eval(), ["unused"]) as t,
        ):
            t(INPUTS)
        with (
            pytest.raises(UsageError, match=r"'pair' gives a tuple(.|\n)*pair:output.0"),
            Tapped(Odd(), ["pair"]) as t,
        ):
            t(INPUTS)


class TestTransformers:
    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_attention_is_read_from_scaled_dot_product_attention(self, mode):
        model = getattr(net("vit", dim=24, heads=3), mode)()
        with Tapped(model, ["blocks.1:attention", "blocks.0"]) as tapped:
            logits, seen = tapped(INPUTS)
        assert torch.equal(logits, model(INPUTS))
        weights, block = seen["blocks.1:attention"], model.blocks[1]
        assert weights.shape == (4, 3, 16, 16)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 3, 16))
        # The values, averaged with these weights, are what the block adds.
        x = seen["blocks.0"]
        v = block.qkv(block.norm1(x)).reshape(4, 16, 3, 3, 8)[:, :, 2].transpose(1, 2)
        attended = x + block.out((weights @ v).transpose(1, 2).reshape(4, 16, 24))
        torch.testing.assert_close(attended + block.mlp(block.norm2(attended)), block(x))

    @pytest.mark.parametrize("kind", ["multihead", "function"])
    def test_two_that_watch_the_same_attention_both_see_it(self, kind):
        if kind == "multihead":
            layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
            model, tap, x = nn.Sequential(layer), "0.self_attn:attention", torch.randn(5, 7, 16)
        else:
            model, tap, x = net("vit", dim=24, heads=3), "blocks.1:attention", INPUTS
        model.eval()
        expected = model(x)
        with Tapped(model, [tap]) as first, Tapped(model, [tap]) as second:
            output, inner = second(x)
            outer = dict(first._seen)
        torch.testing.assert_close(output, expected)
        assert inner[tap].ndim == 4
        assert torch.equal(inner[tap], outer[tap])

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_attention_is_read_from_multihead_attention_and_its_caller_notices_nothing(self, mode):
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        model = getattr(nn.Sequential(encoder, nn.Linear(16, 2)), mode)()
        x = torch.randn(5, 7, 16)
        with Tapped(model, ["0.layers.2.self_attn:attention", "0.layers.1"]) as tapped:
            output, seen = tapped(x)
        torch.testing.assert_close(output, model(x))
        weights = seen["0.layers.2.self_attn:attention"]
        assert weights.shape == (5, 4, 7, 7)
        attention, h = encoder.layers[2].self_attn, seen["0.layers.1"]
        expected = attention(h, h, h, average_attn_weights=False)[1]
        torch.testing.assert_close(weights, expected)
        alone = nn.ModuleDict({"a": attention})
        for asked in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            plain = attention(h, h, h, **asked)[1]
            with Tapped(alone, ["a:attention"]):
                watched = attention(h, h, h, **asked)[1]
            assert (plain is None) == (watched is None)
            if plain is not None:
                torch.testing.assert_close(plain, watched)

    @pytest.mark.parametrize(
        "options",
        [
            {}, {"is_causal": True}, {"scale": 0.5}, {"enable_gqa": True},
            {"attn_mask": torch.tensor([[True, True, False, True, False]] * 3)},
            {"attn_mask": torch.linspace(-2, 2, 15).reshape(3, 5).double()},
        ],
    )  # fmt: skip
    def test_the_weights_are_those_that_torch_averages_values_with(self, options):
        generator = torch.Generator().manual_seed(0)
        heads = 2 if options.get("enable_gqa") else 4
        q = torch.randn(2, 4, 3, 8, generator=generator, dtype=torch.float64)
        k, v = (
            torch.randn(2, heads, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        expected = nn.functional.scaled_dot_product_attention(q, k, v, **options)
        weights = attention_weights(q, k, v, **options)
        torch.testing.assert_close(weights @ v.repeat_interleave(4 // heads, 1), expected)

    def test_a_module_that_fails_leaves_nobody_watching(self):
        class Broken(nn.Module):
            def forward(self, x):
                raise RuntimeError("broken")

        model = nn.Sequential(Broken())
        with pytest.raises(RuntimeError, match="broken"), Tapped(model, ["0:attention"]) as tapped:
            tapped(INPUTS)
        assert torch.overrides._get_current_function_mode_stack() == []

    def test_attention_where_there_is_none_says_where_it_is_seen(self):
        with (
            pytest.raises(UsageError, match=r"not reached(.|\n)*scaled_dot_product_attention"),
            Tapped(net("resnet8"), ["layer1:attention"]) as tapped,
        ):
            tapped(INPUTS)

    def test_one_of_several_outputs_is_read_by_number_or_name(self):
        class Several(nn.Module):
            def forward(self, x):
                return {"hidden": 2 * x, "other": x}

        class Last(nn.Module):
            def forward(self, several):
                return several["hidden"], several["other"]

        model = nn.Sequential(Several(), Last())
        with Tapped(model, ["0:output.hidden", "1:output.1"]) as tapped:
            _, seen = tapped(INPUTS)
        assert torch.equal(seen["0:output.hidden"], 2 * INPUTS)
        assert torch.equal(seen["1:output.1"], INPUTS)
        for tap in ("0:output.nothing", "1:output.5", "1:output.x"):
            with pytest.raises(UsageError, match="has no"), Tapped(model, [tap]) as tapped:
                tapped(INPUTS)

    def test_what_enters_by_name_is_an_input_too(self):
        class Named(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Identity()

            def forward(self, x):
                return self.inner(input=x)

        with Tapped(Named(), ["inner:input"]) as tapped:
            assert torch.equal(tapped(INPUTS)[1]["inner:input"], INPUTS)

    def test_stages_of_a_transformer_are_the_blocks_that_end_its_thirds(self):
        assert stages(net("vit", depth=6), INPUTS) == ["blocks.1", "blocks.3", "blocks.5"]
        assert stages(net("vit", depth=2), INPUTS) == ["blocks.0", "blocks.1"]

    def test_blocks_that_give_several_tensors_are_read_at_the_first(self):
        class Block(nn.Module):
            def forward(self, x):
                return (x + 1, None)

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(Block() for _ in range(3))

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)[0]
                return x

        model = Model()
        found = stages(model, torch.zeros(2, 5, 4))
        assert found == [f"layers.{k}:output.0" for k in range(3)]
        with Tapped(model, found) as tapped:
            assert [float(f.max()) for f in tapped(torch.zeros(2, 5, 4))[1].values()] == [1, 2, 3]

    @pytest.mark.parametrize(
        "name", ["fitnet", "at", "sp", "nst", "vid", "ab", "fsp", "reviewkd", "ft"]
    )
    @pytest.mark.parametrize("other", ["vit", "resnet8"])
    def test_methods_on_maps_work_with_transformers_on_either_side(self, name, other):
        student = net("vit", dim=16, heads=2, depth=3, seed=1)
        args = {"dim": 32, "heads": 4, "depth": 6} if other == "vit" else {}
        teacher = net(other, **args).eval()
        objective = Objective(0.0, (METHODS.get(name)(),))
        objective.prepare(student, teacher, INPUTS, seed=0)
        with torch.no_grad(), Tapped(teacher, objective.teacher_taps) as known:
            taught = Knowledge(*known(INPUTS))
        epoch = objective.methods[0].alone if name == "ft" else 0  # past its paraphraser
        with Tapped(student.train(), objective.student_taps) as tapped:
            answer = Knowledge(*tapped(INPUTS))
        terms = objective.terms(answer, taught, torch.arange(4), epoch)
        terms[name].backward()
        assert student.blocks[0].qkv.weight.grad.abs().max() > 0

    def test_attention_maps_are_taught_head_by_head(self):
        student, teacher = (
            net("vit", dim=8 * heads, heads=heads, depth=2, seed=heads) for heads in (2, 4)
        )
        tap = ("blocks.1:attention", "blocks.1:attention")
        objective = Objective(0.0, (METHODS.get("fitnet")(taps=[tap]),))
        objective.prepare(student, teacher.eval(), INPUTS, seed=0)
        assert objective.trained["fitnet"].parts[0][0].weight.shape == (4, 2, 1, 1)
        with torch.no_grad(), Tapped(teacher, objective.teacher_taps) as known:
            taught = Knowledge(*known(INPUTS))
        with Tapped(student, objective.student_taps) as tapped:
            assert not tapped.compilable
            answer = Knowledge(*tapped(INPUTS))
        objective.terms(answer, taught, torch.arange(4))["fitnet"].backward()
        assert student.blocks[1].qkv.weight.grad.abs().max() > 0


def test_a_compiled_model_gives_the_same_features():
    model = net("resnet8").eval()
    with Tapped(model, ["layer2", "penultimate"]) as tapped:
        assert tapped.compilable
        logits, seen = tapped(INPUTS)
        again, compiled = torch.compile(tapped.__call__, backend="eager")(INPUTS)
    torch.testing.assert_close(logits, again)
    assert list(seen) == list(compiled)
    for name in seen:
        torch.testing.assert_close(seen[name], compiled[name])


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

    def test_penultimate_is_what_enters_the_linear_layer_that_runs_last(self):
        class HeadFirst(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(8, 3)
                self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU())

            def forward(self, x):
                return self.head(self.body(x))

        model = HeadFirst()
        assert penultimate(model, INPUTS) == "head:input"
        assert penultimate(net("resnet8"), INPUTS) == "fc:input"
        objective = Objective(
            1.0, MethodList.parse(["rkd", {"pkt": {"tap": ["penultimate", "body"]}}]).entries
        )
        objective.prepare(model, model, INPUTS, 0)
        assert objective.methods[0].taps == [("head:input", "head:input")]
        assert objective.methods[1].taps == [("head:input", "body")]
        with pytest.raises(UsageError, match="no linear layer"):
            penultimate(nn.Sequential(nn.Conv2d(1, 1, 1)), INPUTS)

    def test_of_signals_they_are_maps_of_height_one(self):
        def blocks(*widths):
            channels = [1, *widths]
            return nn.Sequential(
                nn.Sequential(*(
                    nn.Sequential(nn.Conv1d(a, b, 3, 2, 1), nn.BatchNorm1d(b), nn.ReLU())
                    for a, b in itertools.pairwise(channels)
                )),
                nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], 3),
            ).eval()  # fmt: skip

        x, student, teacher = torch.randn(4, 1, 64), blocks(4, 8), blocks(6, 12)
        assert stages(student, x) == ["0.0", "0"]
        with Tapped(student, ["0.1", "3:input"]) as tapped:
            _, seen = tapped(x)
        assert seen["0.1"].shape == (4, 8, 1, 16)
        assert seen["3:input"].shape == (4, 8)
        torch.testing.assert_close(seen["0.1"][:, :, 0], student[0](x))
        objective = Objective(1.0, MethodList.parse(["fitnet", "at"]).entries)
        objective.prepare(student, teacher, x, 0)
        (regressor,) = objective.trained["fitnet"].parts
        assert regressor[0].weight.shape == (12, 8, 1, 1)

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
