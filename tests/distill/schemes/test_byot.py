"""Be Your Own Teacher: the exits' losses against a loop; nothing of them ships."""

import math

import pytest
import torch

from edgekd.distill.exits import Exit, OwnTeacher
from edgekd.distill.method import Knowledge
from edgekd.distill.methods.kd import KD
from edgekd.distill.taps import Tapped
from edgekd.errors import UsageError
from edgekd.models.resolve import build
from tests.distill.schemes.conftest import StopAfter, same

INPUTS = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.tensor([0, 1, 2, 3, 4])


def net(name="resnet8", **args):
    return build(f"zoo:{name}", args, input_shape=(1, 16, 16), classes=10, seed=0, base=None)


def parts(model, **settings):
    settings = {"share": 0.3, "hint": 0.03, "temperature": 3.0} | settings
    model = model.double()
    objective = OwnTeacher(0.5, (), **settings)
    objective.attach(model, INPUTS, 10, seed=0)
    objective.exits.double()
    with Tapped(model.train(), objective.student_taps) as tapped:
        student = Knowledge(*tapped(INPUTS))
    return objective, student


def softmax(row, T=1.0):
    e = [math.exp(x / T) for x in row]
    return [x / sum(e) for x in e]


def test_the_exits_terms_equal_a_loop():
    objective, student = parts(net())
    assert objective.stages == ["layer1", "layer2", "layer3"]
    terms = objective.terms(student, None, LABELS)
    for module in objective.exits.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    answers = [e(student.features[s]) for e, s in zip(objective.exits, objective.stages)]  # noqa: B905
    deepest = student.features["layer3"].mean((2, 3)).tolist()
    ce = kl = hint = 0.0
    for features, z in answers:
        for i in range(5):
            ce -= math.log(softmax(z[i].tolist())[LABELS[i]]) / 5
            p, q = softmax(student.logits[i].tolist(), 3.0), softmax(z[i].tolist(), 3.0)
            kl += 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
            pairs = zip(features[i].tolist(), deepest[i], strict=True)
            hint += sum((a - b) ** 2 for a, b in pairs) / 5 / 64
    assert terms["exits cross_entropy"].item() == pytest.approx(0.7 * ce, rel=1e-9)
    assert terms["exits kd"].item() == pytest.approx(0.3 * kl, rel=1e-9)
    assert terms["exits hint"].item() == pytest.approx(0.03 * hint, rel=1e-9)


def test_the_deepest_layer_teaches_and_is_not_pulled_to_the_exits():
    model = net()
    objective, student = parts(model)
    terms = objective.terms(student, None, LABELS)
    early, last = model.conv1.weight, model.layer3[0].conv1.weight
    for name in ("exits cross_entropy", "exits kd", "exits hint"):
        a, b, c = torch.autograd.grad(
            terms[name], [early, last, model.fc.weight], retain_graph=True, allow_unused=True
        )
        assert a.abs().max() > 0
        assert b is None
        assert c is None


def test_exits_shrink_the_map_as_the_network_does():
    exit_ = Exit(torch.Size((2, 8, 16, 16)), torch.Size((2, 32, 4, 4)), 10)
    assert [m.stride for m in exit_.modules() if isinstance(m, torch.nn.Conv2d)] == [(2, 2)] * 2
    features, logits = exit_(torch.randn(2, 8, 16, 16))
    assert features.shape == (2, 32)
    assert logits.shape == (2, 10)


def test_transformers_have_exits_too():
    objective, student = parts(net("vit", dim=16, depth=4, heads=2))
    assert len(objective.exits) == 2
    assert all(t.isfinite() for t in objective.terms(student, None, LABELS).values())


def test_a_network_without_stages_is_refused():
    with pytest.raises(UsageError, match="at least two stages"):
        OwnTeacher(1.0, (), share=0.3, hint=0.0, temperature=1.0).attach(
            net("mlp"), INPUTS.float(), 10, 0
        )


def test_own_teacher_and_teacher_together_train_one_plain_student_and_resume(lab):
    student = {"model": "zoo:dscnn", "args": {"width": 4, "depth": 2}}
    settings = {"scheme": "byot", "methods": [{"kd": {}}, {"fitnet": {}}]}
    sections = {"student": student, "teacher": {"model": "zoo:dscnn", "args": {"width": 8}}}
    whole = lab("whole", distill=settings, **sections).distill()
    cut = lab("far/cut", distill={**settings, "checkpoint_every": 0.0}, **sections)
    with pytest.raises(RuntimeError, match="power cut"):
        cut.distill(StopAfter(30 + 8))
    cut.distill()
    assert same(cut.network(), whole.network())
    from edgekd.results import History

    losses = History.read(whole.path / "student/history.json").epochs[0].losses
    assert set(losses) == {
        "cross_entropy", "kd", "fitnet", "exits cross_entropy", "exits kd", "exits hint",
    }  # fmt: skip
    assert KD.name in losses
