"""Deep mutual learning: against a loop with one optimizer per peer; no peer moves another."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from edgekd.data.views import Views
from edgekd.distill.method import Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.peers import Mutual, Peers, mutual
from edgekd.distill.trainer import learning_rate
from edgekd.models import role
from tests.distill.schemes.conftest import StopAfter, refused, same


def softmax(row, T):
    e = [math.exp(x / T) for x in row]
    return [x / sum(e) for x in e]


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_mutual_equals_a_loop(T):
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    for k, found in enumerate(mutual(logits, T)):
        expected = 0.0
        for other in (j for j in range(3) if j != k):
            for i in range(4):
                p, q = softmax(logits[other][i].tolist(), T), softmax(logits[k][i].tolist(), T)
                expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 4 / 2
        assert found.item() == pytest.approx(T**2 * expected, rel=1e-12)


def test_no_gradient_of_one_peers_terms_reaches_another():
    peers = Peers([torch.nn.Linear(6, 4) for _ in range(3)])
    objective = Mutual(1.0, (KD(),), peers=3, weight=1.0, temperature=1.0)
    inputs, labels = torch.randn(8, 6), torch.arange(8) % 4
    features = {f"peers.{k}": peer(inputs) for k, peer in enumerate(peers.peers)}
    terms = objective.terms(
        Knowledge(features["peers.0"], features), Knowledge(torch.randn(8, 4)), labels
    )
    assert len(terms) == 9
    for name, term in terms.items():
        reached = torch.autograd.grad(
            term, [p.weight for p in peers.peers], retain_graph=True, allow_unused=True
        )
        own = int(name.split()[1]) - 1
        assert [k for k, g in enumerate(reached) if g is not None and g.abs().max() > 0] == [own]


def test_two_peers_are_trained_as_by_a_plain_loop_with_an_optimizer_each(lab):
    run = lab(distill={"scheme": "online", "epochs": 2, "select": "last"}).distill()
    config, dataset = run.config.distill, run.dataset
    assert config.alpha == 1
    assert not config.methods.entries
    peers = [
        role.build(run.config.student, "student", dataset, seed=k, base=run.base).train()
        for k in range(2)
    ]
    optimizers = [
        torch.optim.SGD(p.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for p in peers
    ]
    import numpy as np

    views, labels, step = Views(dataset, run.config.data.augment, 0), dataset.labels, 0
    size, total = config.batch_size, 2 * math.ceil(len(dataset.train) / config.batch_size)
    for epoch in range(2):
        order = np.random.default_rng((0, epoch)).permutation(dataset.train)
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            answers = [peer(views.batch(batch, 0)) for peer in peers]
            y = torch.from_numpy(labels[batch])
            frozen = [z.detach() for z in answers]
            for k, (z, optimizer) in enumerate(zip(answers, optimizers, strict=True)):
                kl = F.kl_div(z.log_softmax(1), frozen[1 - k].softmax(1), reduction="batchmean")
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, total)
                optimizer.zero_grad()
                (F.cross_entropy(z, y) + kl).backward()
                optimizer.step()
            step += 1
    for peer, folder in zip(peers, ("student", "student/peers/2"), strict=True):
        for a, b in zip(peer.parameters(), run.network(folder).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_peers_may_be_of_other_architectures_and_learn_from_the_teacher_too(lab):
    other = {"model": "zoo:mlp", "args": {"hidden": [30]}}
    run = lab(distill={"scheme": {"online": {"peers": [other]}}, "methods": ["kd"]}).distill()
    assert run.network("student/peers/2")[1].out_features == 30
    assert run.network()[1].out_features == 12
    from edgekd.results import History

    losses = History.read(run.path / "student/history.json").epochs[0].losses
    assert set(losses) == {
        f"peer {k} {term}" for k in (1, 2) for term in ("cross_entropy", "kd", "mutual")
    }


def test_killed_it_goes_on_to_the_same_peers(lab):
    whole = lab("whole", distill={"scheme": "online"}).distill()
    for steps in (33, 44):
        cut = lab(f"{steps}/cut", distill={"scheme": "online", "checkpoint_every": 0.0})
        with pytest.raises(RuntimeError, match="power cut"):
            cut.distill(StopAfter(steps))
        cut.distill()
        for folder in ("student", "student/peers/2"):
            assert same(cut.network(folder), whole.network(folder))


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"scheme": {"online": {"peers": 1}}}, "peers should be 2 to 100"),
        ({"scheme": {"online": {"peers": []}}}, "at least one network"),
        ({"scheme": "online", "methods": ["rkd"]}, r"rkd needs features.*methods that work"),
        ({"scheme": "online", "methods": [{"kd": {"alone": 2}}]}, "cannot be `alone`"),
    ],
)
def test_what_cannot_work_is_refused(distill, message):
    assert re.search(message, refused(**distill)), refused(**distill)
