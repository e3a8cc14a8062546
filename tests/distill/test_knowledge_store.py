import json

import pytest
import torch
from torch import nn

from edgekd.distill.knowledge_store import KnowledgeStore
from edgekd.errors import UsageError


class Counting(nn.Module):
    """A teacher that counts how many samples it is asked about."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        return self.layer(x)


def store_in(path, **identity):
    return KnowledgeStore(path, identity or {"teacher": "a"}, views=2, samples=10, classes=3)


def test_the_teacher_is_asked_once_per_sample_and_view(tmp_path):
    teacher, store, x = Counting().eval(), store_in(tmp_path), torch.randn(4, 4)
    indices = torch.tensor([7, 1, 3, 9])
    first = store.logits(teacher, x, indices, 0)
    again = store.logits(teacher, x, indices, 0)
    assert teacher.asked == 4
    assert torch.equal(first, again)
    assert torch.equal(first, teacher.layer(x).detach())
    store.logits(teacher, x, indices, 1)
    assert teacher.asked == 8
    assert store.filled == pytest.approx(8 / 20)


def test_knowledge_stays_with_its_sample_whatever_the_order_of_the_batch(tmp_path):
    teacher, store, x = Counting().eval(), store_in(tmp_path), torch.randn(10, 4)
    everything = store.logits(teacher, x, torch.arange(10), 0)
    shuffled = torch.tensor([5, 2, 8, 0])
    assert torch.equal(store.logits(teacher, x[shuffled], shuffled, 0), everything[shuffled])


def test_another_process_finds_what_was_computed(tmp_path):
    teacher, x, indices = Counting().eval(), torch.randn(3, 4), torch.tensor([0, 1, 2])
    known = store_in(tmp_path).logits(teacher, x, indices, 0)
    assert torch.equal(store_in(tmp_path).logits(teacher, x, indices, 0), known)
    assert teacher.asked == 3


def test_another_teacher_gets_another_store(tmp_path):
    assert store_in(tmp_path, teacher="a").folder != store_in(tmp_path, teacher="b").folder


def test_a_store_that_says_it_is_something_else_is_refused(tmp_path):
    about = store_in(tmp_path).folder / "store.json"
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"shape": [1, 1, 1]}))
    with pytest.raises(UsageError, match="made for something else"):
        store_in(tmp_path)


def test_a_batch_known_in_part_is_computed_as_a_whole(tmp_path):
    teacher, store, x = Counting().eval(), store_in(tmp_path), torch.randn(4, 4)
    store.logits(teacher, x[:2], torch.tensor([0, 1]), 0)
    store.logits(teacher, x, torch.tensor([0, 1, 2, 3]), 0)
    assert teacher.asked == 6
