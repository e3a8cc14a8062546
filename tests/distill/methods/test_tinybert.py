"""TinyBERT's layer-wise loss against a loop over single values."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgekd.distill.method import METHODS, Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped, attention_weights
from edgekd.errors import UsageError
from edgekd.models.zoo.bert import bert

IDS = torch.tensor([[2, 5, 7, 3, 0, 0], [2, 9, 4, 8, 6, 3], [2, 3, 0, 0, 0, 0]])


def net(dim=16, depth=2, heads=2, seed=0):
    torch.manual_seed(seed)
    return bert((6,), 3, vocabulary=12, dim=dim, depth=depth, heads=heads).eval()


def prepared(student, teacher, **parameters):
    objective = Objective(0.0, (METHODS.get("tinybert")(**parameters),))
    objective.prepare(student, teacher, IDS, seed=0)
    return objective


def terms(objective, student, teacher, ids=IDS):
    with Tapped(student, objective.student_taps) as s, Tapped(teacher, objective.teacher_taps) as t:
        own, theirs = Knowledge(*s(ids)), Knowledge(*t(ids))
    theirs = replace(theirs, mask=ids != 0)
    return objective.terms(own, theirs, torch.zeros(len(ids)).long())["tinybert"], own, theirs


def test_it_equals_a_loop_over_tokens_that_are_no_padding():
    student, teacher = net(seed=1), net(dim=24, depth=4, heads=2, seed=2)
    objective = prepared(student, teacher, attention=0.5)
    loss, own, theirs = terms(objective, student, teacher)
    hidden, embedding = objective.losses["tinybert"].parts
    total = 0.0
    for t, s in objective.methods[0].taps:
        a, b, values = own.features[s], theirs.features[t], []
        if s.endswith(":scores"):
            for i, ids in enumerate(IDS):
                length = int((ids != 0).sum())
                values += [
                    (a[i, h, q, k] - b[i, h, q, k]).item() ** 2
                    for h in range(2) for q in range(length) for k in range(length)
                ]  # fmt: skip
            total += 0.5 * sum(values) / len(values)
            continue
        mapped = (embedding if s.endswith(":input") else hidden)(a)
        for i, ids in enumerate(IDS):
            for place in range(int((ids != 0).sum())):
                values += (mapped[i, place] - b[i, place]).square().tolist()
        total += sum(values) / len(values)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_blocks_are_paired_evenly_the_last_with_the_last():
    taps = prepared(net(), net(depth=6)).methods[0].taps
    assert taps == [
        ("layers.0:input", "layers.0:input"),
        ("layers.2", "layers.0"), ("layers.2:scores", "layers.0:scores"),
        ("layers.5", "layers.1"), ("layers.5:scores", "layers.1:scores"),
    ]  # fmt: skip
    named = prepared(net(), net(depth=6), layers=[0, 4], attention=0.0).methods[0].taps
    assert named[1:] == [("layers.0", "layers.0"), ("layers.4", "layers.1")]


def test_what_stands_in_the_padding_does_not_matter():
    student, teacher = net(seed=1), net(seed=2)
    objective = prepared(student, teacher)
    loss, own, theirs = terms(objective, student, teacher)
    padding = (IDS == 0)[..., None]
    for tap, value in theirs.features.items():
        if not tap.endswith(":scores"):
            theirs.features[tap] = value.masked_fill(padding, 1e3)
    again = objective.terms(own, theirs, torch.zeros(3).long())["tinybert"]
    assert again.item() == pytest.approx(loss.item())


def test_other_numbers_of_heads_are_taught_by_their_mean():
    student, teacher = net(heads=2), net(heads=4)
    loss, *_ = terms(prepared(student, teacher), student, teacher)
    loss.backward()
    assert student.layers[0].query.weight.grad.abs().max() > 0


def test_scores_are_what_the_weights_are_the_softmax_of():
    model = net()
    with Tapped(model, ["layers.1:scores", "layers.1:attention"]) as tapped:
        _, found = tapped(IDS)
    seen = (IDS != 0)[:, None, None, :]
    scores = found["layers.1:scores"].masked_fill(~seen, -torch.inf)
    assert torch.allclose(scores.softmax(-1), found["layers.1:attention"], atol=1e-6)
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    assert torch.allclose(
        attention_weights(q, k, k, scale=0.3), (0.3 * q @ k.transpose(-2, -1)).softmax(-1)
    )


def test_networks_without_blocks_wrong_layers_and_hidden_scores_are_refused():
    with pytest.raises(UsageError, match="which the student is not"):
        METHODS.get("tinybert")().pair_blocks({"layers.0": "layers.0"}, {})
    with pytest.raises(
        UsageError, match=r"layers \[0, 7\] should be 2 of the teacher's blocks 0 to 1"
    ):
        prepared(net(), net(), layers=[0, 7])
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2)})
    with pytest.raises(UsageError, match="its weights, not their scores"):
        Tapped(attention, ["a:scores"]).__enter__()
