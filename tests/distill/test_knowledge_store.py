"""The store: asked once, bits that never change, rows that are right or unknown, and its size."""

import json
import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.config.schema import KnowledgeStorage
from edgekd.distill import knowledge_store
from edgekd.distill.knowledge_store import Dense, KnowledgeStore, StoredKnowledge, TopK
from edgekd.distill.method import Knowledge
from edgekd.errors import StageError, UsageError

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
ALL = torch.arange(10)


class Counting(nn.Module):
    """A teacher that counts how many samples it is asked about."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, classes)
        self.asked = 0

    def forward(self, x):
        with torch.no_grad():
            self.asked += len(x)
            logits = self.layer(x)
            return Knowledge(logits, {"map": logits[:, :, None, None].repeat(1, 1, 2, 2)})


class LogitsOnly(Counting):
    def forward(self, x):
        return Knowledge(super().forward(x).logits)


def stored(path, teacher, identity="a", resident=None, every_logit=False, **config):
    return StoredKnowledge(
        lambda inputs, indices, view: teacher(inputs), path, {"teacher": identity},
        KnowledgeStorage(**config), views=2, samples=10,
        rows=np.arange(10), example=teacher(X[:2]), resident=resident,
        every_logit=every_logit,
    )  # fmt: skip


def store_in(path, codec=None, samples=10, **identity):
    return KnowledgeStore(
        path, identity or {"teacher": "a"}, views=2, samples=samples, codec=codec or Dense((3,))
    )


def test_the_teacher_is_asked_once_per_sample_and_view(tmp_path):
    teacher = LogitsOnly()
    ask, indices = stored(tmp_path, teacher), torch.tensor([7, 1, 3, 9])
    teacher.asked = 0
    first, again = ask(X[indices], indices, 0), ask(X[indices], indices, 0)
    assert teacher.asked == 4
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.logits, teacher(X[indices]).logits.half().float())
    teacher.asked = 0
    ask(X[indices], indices, 1)
    assert teacher.asked == 4
    assert ask.stores["logits"].filled == pytest.approx(8 / 20)


def test_what_is_known_is_said_without_asking_or_not_at_all(tmp_path):
    teacher = LogitsOnly()
    ask, indices = stored(tmp_path, teacher), torch.tensor([7, 1])
    first, teacher.asked = ask(X[indices], indices, 0), 0
    assert torch.equal(ask.known(np.array([7, 1]), 0).logits, first.logits)
    assert ask.known(np.array([7, 2]), 0) is None
    assert ask.known(np.array([7, 1]), 1) is None
    assert stored(tmp_path / "none", teacher, store=False).known(np.array([7]), 0) is None
    assert teacher.asked == 2  # for the example


def test_full_precision_is_kept_where_it_is_asked_for(tmp_path):
    teacher = LogitsOnly()
    ask = stored(tmp_path, teacher, precision="f32")
    assert torch.equal(ask(X, ALL, 0).logits, teacher(X).logits)
    assert torch.equal(ask(X, ALL, 0).logits, teacher(X).logits)


def test_features_are_kept_with_the_logits(tmp_path):
    teacher = Counting()
    ask = stored(tmp_path, teacher)
    teacher.asked = 0
    first, again = ask(X, ALL, 0), ask(X, ALL, 0)
    assert teacher.asked == 10
    assert set(ask.stores) == {"logits", "map"}
    assert torch.equal(first.features["map"], again.features["map"])
    assert torch.equal(first.features["map"][:, :, 1, 1], first.logits)
    assert ask.size == sum(store.size for store in ask.stores.values())


def test_logits_are_shared_with_a_distillation_that_needs_no_features(tmp_path):
    both, logits = Counting(), LogitsOnly()
    stored(tmp_path, both)(X, ALL, 0)
    ask = stored(tmp_path, logits)
    logits.asked = 0
    ask(X, ALL, 0)
    assert logits.asked == 0


def test_above_the_limit_the_teacher_runs_every_time_and_nothing_is_written(tmp_path):
    teacher = Counting()
    ask = stored(tmp_path, teacher, limit="100 B")
    teacher.asked = 0
    for _ in range(2):
        assert torch.equal(ask(X, ALL, 0).logits, teacher.layer(X).detach())
    assert teacher.asked == 20
    assert list(tmp_path.iterdir()) == []
    assert ask.size > 100


def test_what_lies_on_the_device_is_what_the_store_holds(tmp_path):
    teacher = Counting()
    ask = stored(tmp_path, teacher)
    known = ask(X, ALL, 1)
    shuffled = torch.tensor([5, 2, 8, 0])
    resident = stored(tmp_path, teacher, resident=True)
    teacher.asked = 0
    found = resident(X[shuffled], shuffled, 1)
    assert torch.equal(found.logits, known.logits[shuffled])
    assert torch.equal(found.features["map"], known.features["map"][shuffled])
    assert torch.equal(resident(X, ALL, 0).logits, teacher(X).logits.half().float())


def test_knowledge_stays_with_its_sample_whatever_the_order_of_the_batch(tmp_path):
    store, values = store_in(tmp_path), torch.randn(10, 3)
    everything = store.keep(ALL.numpy(), 0, values)
    shuffled = np.array([5, 2, 8, 0])
    assert torch.equal(store.read(shuffled, 0), everything[shuffled])
    assert store.read(shuffled, 1) is None


def test_a_row_that_is_known_never_changes(tmp_path):
    store, values = store_in(tmp_path), torch.randn(10, 3)
    first = store.keep(np.arange(5), 0, values[:5])
    again = store_in(tmp_path).keep(np.arange(10), 0, values + 1)
    assert torch.equal(again[:5], first)
    assert torch.equal(again[5:], (values + 1)[5:].half().float())


def test_a_batch_known_in_part_is_asked_about_as_a_whole(tmp_path):
    teacher = LogitsOnly()
    ask = stored(tmp_path, teacher)
    ask(X[:2], ALL[:2], 0)
    teacher.asked = 0
    ask(X[:4], ALL[:4], 0)
    assert teacher.asked == 4


def test_a_damaged_or_half_written_row_is_unknown(tmp_path):
    store, values = store_in(tmp_path), torch.randn(10, 3)
    store.keep(ALL.numpy(), 0, values)
    (shard,) = store.folder.glob("*.bin")
    content = bytearray(shard.read_bytes())
    row = 2 * (3 + 2)
    content[4 * row + 1] ^= 4
    content[6 * row + 4 : 7 * row] = bytes(row - 4)  # as far as the write came
    shard.write_bytes(content)
    again = store_in(tmp_path)
    assert again.known(np.arange(10), 0).tolist() == [i not in (4, 6) for i in range(10)]
    assert again.read(np.arange(10), 0) is None
    assert torch.equal(again.keep(np.arange(10), 0, values), values.half().float())


def test_a_row_of_zeros_can_be_known(tmp_path):
    store = store_in(tmp_path)
    assert not store.known(np.arange(10), 0).any()
    store.keep(np.arange(3), 0, torch.zeros(3, 3))
    assert store.known(np.arange(10), 0).sum() == 3


def test_many_shards_are_one_store(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_store, "SHARD", 2 * 5 * 3)
    store, values = store_in(tmp_path), torch.randn(10, 3)
    mixed = np.array([9, 0, 4, 3, 7])
    kept = store.keep(mixed, 1, values[mixed])
    assert torch.equal(kept, values[mixed].half().float())
    assert len(list(store.folder.glob("001-*.bin"))) == 4
    assert torch.equal(store.read(mixed[::-1].copy(), 1), kept.flip(0))
    assert store.known(np.arange(10), 1).sum() == 5


def test_another_teacher_gets_another_store(tmp_path):
    assert store_in(tmp_path, teacher="a").folder != store_in(tmp_path, teacher="b").folder
    other = store_in(tmp_path, codec=Dense((3,), "f32"), teacher="a")
    assert other.folder != store_in(tmp_path, teacher="a").folder


def test_a_store_that_says_it_is_something_else_is_refused(tmp_path):
    about = store_in(tmp_path).folder / "store.json"
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"samples": 11}))
    with pytest.raises(UsageError, match="made for something else"):
        store_in(tmp_path)


def test_a_shard_of_another_size_is_refused(tmp_path):
    store = store_in(tmp_path)
    store.keep(np.arange(3), 0, torch.zeros(3, 3))
    (shard,) = store.folder.glob("*.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(StageError, match="another size"):
        store_in(tmp_path).read(np.arange(3), 0)


@pytest.mark.parametrize("bad", [1e6, math.inf, math.nan])
def test_what_float16_cannot_hold_is_one_clear_error(tmp_path, bad):
    values = torch.zeros(10, 3)
    values[4, 1] = bad
    with pytest.raises(StageError, match="float16 cannot hold"):
        store_in(tmp_path).keep(ALL.numpy(), 0, values)
    if math.isfinite(bad):
        full = store_in(tmp_path, codec=Dense((3,), "f32"))
        assert full.keep(ALL.numpy(), 0, values)[4, 1] == bad


def test_the_largest_logits_are_kept_and_the_rest_has_its_probability(tmp_path):
    torch.manual_seed(0)
    values = torch.randn(10, 500) * 3
    codec = TopK(500, 20)
    kept = store_in(tmp_path, codec=codec).keep(ALL.numpy(), 0, values)
    top, which = values.topk(20, dim=1)
    assert torch.equal(kept.gather(1, which), top.half().float())
    p, q = values.double().softmax(1), kept.double().softmax(1)
    assert torch.allclose(p.gather(1, which), q.gather(1, which), rtol=6e-3)
    assert torch.allclose(1 - p.gather(1, which).sum(1), 1 - q.gather(1, which).sum(1), rtol=6e-3)
    assert codec.words == 62 < Dense((500,)).words


@pytest.mark.parametrize(("top_k", "classes", "k"), [("auto", 2000, 100), (7, 50, 7)])
def test_top_k_is_used_where_all_would_be_too_much_or_where_it_is_asked_for(
    tmp_path, top_k, classes, k
):
    # 2 views of 10 samples: all logits of 2000 classes take 80 kB, the 100 largest 12 kB.
    ask = stored(tmp_path, LogitsOnly(classes), top_k=top_k, limit="50 kB")
    assert ask.stores["logits"].codec == TopK(classes, k)
    assert isinstance(stored(tmp_path, LogitsOnly(2000)).stores["logits"].codec, Dense)
    assert isinstance(stored(tmp_path, LogitsOnly(50)).stores["logits"].codec, Dense)
    assert isinstance(stored(tmp_path, LogitsOnly(50), top_k=60).stores["logits"].codec, Dense)


def test_a_method_that_needs_every_logit_gets_all_of_them_or_the_teacher(tmp_path):
    found = [
        stored(tmp_path, LogitsOnly(2000), every_logit=True, limit=limit)
        for limit in ("8 GB", "50 kB")
    ]
    assert isinstance(found[0].stores["logits"].codec, Dense)
    assert not found[1].stores


def test_what_is_expected_of_a_store_is_what_it_gives(tmp_path):
    ask, indices = stored(tmp_path, LogitsOnly(50), top_k=7), torch.arange(10)
    given = ask(X[indices], indices, 0)
    assert torch.equal(ask.rounded(LogitsOnly(50)(X[indices])).logits, given.logits)


def fill(path, offset, out):
    """In a process of its own: what it gets for every batch, in an order of its own."""
    store = store_in(path, codec=Dense((64,)), samples=2000)
    order = np.random.default_rng(int(offset)).permutation(2000)
    got = np.empty((2000, 64), np.float32)
    for rows in order.reshape(-1, 20):
        found = store.read(rows, 0)
        if found is None:
            found = store.keep(rows, 0, torch.full((20, 64), float(offset)))
        got[rows] = found.numpy()
    np.save(out, got)


def test_two_processes_at_once_get_the_same_answers(tmp_path):
    start = multiprocessing.get_context("fork")
    outs = [tmp_path / f"{i}.npy" for i in (1, 2)]
    tasks = [start.Process(target=fill, args=(tmp_path, i + 1, outs[i])) for i in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    a, b = (np.load(out) for out in outs)
    assert np.array_equal(a, b)
    assert (a == a[:, :1]).all()  # no row is half of one and half of the other


def fill_for_ever(path, ready):
    store = store_in(path, codec=Dense((4096,)), samples=4000)
    ready.set()
    for rows in np.arange(4000).reshape(-1, 40):
        store.keep(rows, 0, torch.from_numpy(np.repeat(rows[:, None] % 100, 4096, 1)).float())
    time.sleep(60)


def test_killed_while_it_writes_no_wrong_row_is_left(tmp_path):
    start = multiprocessing.get_context("fork")
    for pause in (0.0, 0.005, 0.02, 0.05):
        ready = start.Event()
        task = start.Process(target=fill_for_ever, args=(tmp_path, ready))
        task.start()
        ready.wait()
        time.sleep(pause)
        os.kill(task.pid, signal.SIGKILL)
        task.join()
        store = store_in(tmp_path, codec=Dense((4096,)), samples=4000)
        rows = np.flatnonzero(store.known(np.arange(4000), 0))
        if len(rows):
            assert torch.equal(store.read(rows, 0)[:, 17], torch.from_numpy(rows % 100).float())
