"""Whole heads of attention pruned: which go, what the module says of itself, and what is rebuilt."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekd import api
from edgekd.config.schema import Export
from edgekd.errors import StageError, UsageError
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.models import resolve
from edgekd.models.attention import attentions
from edgekd.models.network import NETWORKS
from edgekd.models.prune import loses_heads, prune
from edgekd.models.pruned import PRUNED, resize, sizes
from edgekd.models.weights import load_weights, save_weights
from edgekd.results import InputSpec, ModelCard, Tokens
from tests.search.conftest import TINY, Lab

VOCABULARY = 50


def images(count=10):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator)


def ids(count=10, length=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (count, length), generator=generator)


def labels(count=10):
    return torch.arange(count) % 5


def vit():
    torch.manual_seed(0)
    return NETWORKS.get("vit").build((3, 16, 16), 5)


def bert():
    torch.manual_seed(0)
    return NETWORKS.get("bert").build((12,), 5, vocabulary=VOCABULARY)


def hugging_face():
    """As teachers `hf:` are, with random biases instead of zeros."""
    transformers = pytest.importorskip("transformers")
    from edgekd.models.huggingface import Classifier

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=12, num_labels=5,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(value, std=0.1)
    return Classifier(model, 0, None).eval()


NETS = {"vit": (vit, images), "bert": (bert, ids), "hf": (hugging_face, ids)}


class Pooled(nn.Module):
    """Attention with neither norm nor residual: what the loss does not need is left out without a trace."""

    def __init__(self, fused, said):
        super().__init__()
        self.fused, self.said = fused, said
        setattr(self, said, 4)
        for name in ("qkv",) if fused else ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(8, 48 if fused else 16))
        self.out, self.fc = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        n, tokens, _ = x.shape
        heads = getattr(self, self.said)
        if self.fused:
            parts = self.qkv(x).reshape(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            made = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
            parts = [part.reshape(n, tokens, heads, -1).transpose(1, 2) for part in made]
        y = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(n, tokens, -1)
        return self.fc(self.out(y).mean(1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("said", ["num_heads", "heads", "n_heads", "num_attention_heads"])
def test_heads_that_the_loss_does_not_need_go_first(fused, said):
    """Heads 0 and 2 and half of the channels behind are not connected to the outputs: exactly those go."""
    torch.manual_seed(0)
    whole, inputs = Pooled(fused, said), torch.randn(10, 6, 8)
    with torch.no_grad():
        whole.out.weight.view(16, 4, 4)[:, [0, 2]] = 0
        whole.fc.weight[:, ::2] = 0
    left = prune(whole, inputs, [(inputs, labels())], 0.5, whole_heads=True)
    assert getattr(left, said) == 2
    assert left.out.weight.shape == (8, 8)
    assert torch.allclose(left(inputs), whole(inputs), atol=1e-6)
    assert getattr(whole, said) == 4


@pytest.mark.parametrize("name", NETS)
def test_heads_that_are_left_are_whole_ones(name):
    """Their biases are, block by block, those of the same heads in queries, keys and values."""
    build, make = NETS[name]
    whole = build()
    left = prune(whole, make(), [(make(), labels())], 0.5, whole_heads=True)
    for before, after in zip(attentions(whole), attentions(left), strict=True):
        assert (before.heads, after.heads) == (4, 2)
        assert before.size == after.size == 16
        assert after.stated() == before.stated()
        kept = []
        for old, new in zip(before.layers, after.layers, strict=True):
            makes = before.layers[old]
            was, now = (layer.bias.reshape(makes, -1, 16) for layer in (old, new))
            kept += [[heads.index(head) for head in part]
                     for heads, part in zip(was.tolist(), now.tolist(), strict=True)]  # fmt: skip
        assert len(kept) == 3
        assert kept[0] == kept[1] == kept[2]
    assert {len(a.layers) for a in attentions(left)} == {1 if name == "vit" else 3}


@pytest.mark.parametrize("whole_heads", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_what_is_left_is_rebuilt_from_text_trains_and_says_its_heads(name, whole_heads):
    build, make = NETS[name]
    whole = build()
    left = prune(whole, make(), [(make(), labels())], 0.5, whole_heads=whole_heads)
    again = build()
    resize(again, json.loads(json.dumps(sizes(whole, left))), where="student")
    again.load_state_dict(left.state_dict())
    assert torch.equal(again.eval()(make()), left.eval()(make()))
    found = [(a.heads, a.size) for a in attentions(again)]
    assert set(found) == {(2, 16) if whole_heads else (4, 8)}
    assert all(a.even for a in attentions(again))

    optimizer = torch.optim.Adam(again.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(again(make()), labels())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_student_without_heads_is_built_by_name(tmp_path):
    whole, inputs = vit(), images()
    left = prune(whole, inputs, [(inputs, labels())], 0.25, whole_heads=True)
    save_weights(left, tmp_path / "left.safetensors")
    written = sizes(whole, left)
    assert written["blocks.0"] == {"heads": 3}
    args = json.loads(json.dumps({"network": "zoo:vit", "sizes": written}))
    again = resolve.build(PRUNED, args, input_shape=(3, 16, 16), classes=5, seed=9, base=tmp_path)
    load_weights(again, tmp_path / "left.safetensors")
    assert torch.equal(again.eval()(inputs), left.eval()(inputs))


@pytest.mark.parametrize(
    ("ratio", "heads"), [(0.25, 3), (0.5, 2), (0.625, 2), (0.75, 1), (0.95, 1)]
)
def test_so_many_heads_go_and_one_is_always_left(ratio, heads):
    whole, inputs = vit(), images()
    assert loses_heads(whole, ratio)
    left = prune(whole, inputs, [(inputs, labels())], ratio, whole_heads=True)
    assert {a.heads for a in attentions(left)} == {heads}
    assert left(inputs).shape == (10, 5)


def test_where_the_ratio_is_less_than_a_head_none_goes():
    whole, inputs = vit(), images()
    assert not loses_heads(whole, 0.24)
    assert not loses_heads(NETWORKS.get("mlp").build((20,), 5), 0.9)
    with pytest.raises(StageError, match="24% of its attention is not one whole head"):
        prune(whole, inputs, [(inputs, labels())], 0.24, whole_heads=True)


def test_keys_that_queries_share_keep_their_heads():
    shared = nn.Module()
    shared.num_heads = 4
    shared.q_proj, shared.k_proj, shared.v_proj = (nn.Linear(16, w) for w in (16, 8, 8))
    assert len(attentions(shared)) == 1
    assert not loses_heads(shared, 0.5)


@pytest.mark.parametrize("heads", [1, 3, 4, 64, [2]])
def test_a_number_of_heads_that_was_changed_by_hand_is_one_clear_error(heads):
    whole, inputs = vit(), images()
    text = sizes(whole, prune(whole, inputs, [(inputs, labels())], 0.5, whole_heads=True))
    text["blocks.1"]["heads"] = heads
    with pytest.raises(UsageError, match=r"blocks\.1\.heads") as caught:
        resize(vit(), text, where="student pruned: args.sizes")
    assert caught.value.where == "student pruned: args.sizes"
    assert "\n" not in str(caught.value.what)


@pytest.mark.parametrize("whole_heads", [True, False])
def test_so_is_a_size_of_heads(whole_heads):
    whole = hugging_face()
    text = sizes(whole, prune(whole, ids(), [(ids(), labels())], 0.5, whole_heads=whole_heads))
    place = "model.bert.encoder.layer.0.attention.self"
    text[place]["attention_head_size"] = 7
    with pytest.raises(UsageError, match=r"attention\.self\.attention_head_size is 7: .* 32 feat"):
        resize(hugging_face(), text, where="student")


@pytest.mark.slow
@pytest.mark.parametrize("whole_heads", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_its_files_compute_the_same(name, whole_heads, tmp_path):
    import onnxruntime
    import openvino

    build, make = NETS[name]
    left = prune(build(), make(), [(make(), labels())], 0.5, whole_heads=whole_heads).eval()
    inputs, shape = make(), tuple(make().shape[1:])
    tokens = Tokens(vocabulary=VOCABULARY, padding=0) if len(shape) == 1 else None
    told = () if tokens else (0.0,) * 3
    card = ModelCard(
        role="student", model=PRUNED, args={}, classes=tuple("01234"), seed=0, parameters=1,
        input=InputSpec(shape=shape, scale=1, mean=told, std=told, tokens=tokens),
    )  # fmt: skip
    source = Source(left, card, inputs[:2], tmp_path / "student.onnx")
    for format in ("onnx", "openvino"):
        EXPORTERS.get(format)(source, tmp_path, Export())
    expected = left(inputs).detach().numpy()
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    compiled = openvino.Core().compile_model(
        tmp_path / "student.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert np.allclose(session.run(None, {"input": inputs.numpy()})[0], expected, atol=1e-4)
    assert np.allclose(compiled(inputs.numpy())[0], expected, atol=1e-4)


@pytest.mark.slow
def test_search_tries_both_and_the_one_without_heads_goes_through_the_line(tmp_path):
    teacher = {"model": "zoo:vit", "args": {"dim": 32, "depth": 2},
               "train": {**TINY["teacher"]["train"], "epochs": 2}}  # fmt: skip
    search = {**TINY["search"], "trials": 1, "rungs": 1, "epochs": 1}
    lab = Lab(tmp_path, teacher=teacher, search=search)
    report = lab.search()
    assert report.notes == ()
    found = {candidate.name: candidate for candidate in report.candidates}
    assert sorted(found) == ["teacher pruned by 50 %", "teacher pruned by 50 %, whole heads"]
    student = found["teacher pruned by 50 %, whole heads"]
    assert student.args["sizes"]["blocks.0"] == {"heads": 2}

    straight = {
        **lab.value,
        "name": "straight",
        "student": {"model": student.model, "args": student.args},
        "distill": {**TINY["distill"], "epochs": 1},
        "export": {"formats": ["onnx", "openvino"]},
    }
    del straight["search"]
    (tmp_path / "straight.json").write_text(json.dumps(straight))
    run = api.verify(tmp_path / "straight.json", out=tmp_path / "runs/straight")
    assert len(run.verify.files) == 4
    assert all(file.passed for file in run.verify.files)
