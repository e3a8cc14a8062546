"""Students that begin with parts of a BERT, against what that BERT computes."""

import pytest
import torch

from edgekd import api
from edgekd.config.schema import Start
from edgekd.data.resolve import load
from edgekd.distill.methods import tinybert
from edgekd.errors import UsageError
from edgekd.models.huggingface import Classifier, read
from edgekd.models.start import start_from
from edgekd.models.zoo.bert import bert as make
from edgekd.models.zoo.mlp import mlp

TOKENS = 24


@pytest.fixture
def teacher(bert):
    return Classifier(read(bert.folder)[0], 0, None).eval()


def student(teacher, dim=32, depth=2, heads=4, **args):
    torch.manual_seed(1)
    size = teacher.model.config.vocab_size
    return make((TOKENS,), 3, vocabulary=size, dim=dim, depth=depth, heads=heads, **args).eval()


def ids(teacher):
    torch.manual_seed(2)
    x = torch.randint(1, teacher.model.config.vocab_size, (4, TOKENS))
    x[1, 9:] = 0
    x[2, 1:] = 0
    return x


def refused(*args):
    with pytest.raises(UsageError) as caught:
        start_from(*args)
    return str(caught.value)


def test_with_all_parts_of_a_bert_of_its_size_it_computes_the_same(teacher):
    own, x = student(teacher), ids(teacher)
    assert not torch.allclose(own(x), teacher(x), atol=1e-2)
    start_from(own, teacher, Start(embeddings="copy", layers="even"))
    assert torch.allclose(own(x), teacher(x), atol=1e-4)


def test_the_classifier_is_put_into_the_datas_order(bert):
    teacher = Classifier(read(bert.folder)[0], 0, [2, 0, 1]).eval()
    own, x = student(teacher), ids(teacher)
    start_from(own, teacher, Start(embeddings="copy", layers=[0, 1]))
    assert torch.allclose(own(x), teacher(x), atol=1e-4)


@pytest.mark.parametrize(("layers", "chosen"), [("even", [1, 3]), ([0, 3], [0, 3])])
def test_layers_are_taken_evenly_or_as_named(layers, chosen):
    deep = make((TOKENS,), 3, vocabulary=50, dim=16, depth=4, heads=2)
    own = make((TOKENS,), 3, vocabulary=50, dim=16, depth=2, heads=2)
    start_from(own, deep, Start(embeddings=None, layers=layers))
    for layer, theirs in zip(own.layers, chosen, strict=True):
        assert torch.equal(layer.up.weight, deep.layers[theirs].up.weight)
    assert not torch.equal(own.tokens.weight, deep.tokens.weight)


def test_narrower_embeddings_keep_the_most_of_what_tells_tokens_apart(teacher):
    own = student(teacher, dim=8, heads=2)
    start_from(own, teacher, Start(embeddings="copy"))
    given = teacher.model.bert.embeddings.word_embeddings.weight.detach().double()
    centred = given - given.mean(0)
    kept = own.tokens.weight.detach().double()
    spread = (kept - kept.mean(0)).square().sum()
    # Eckart and Young: no projection on 8 directions keeps more than their squared singular values.
    assert spread.item() == pytest.approx(
        torch.linalg.svdvals(centred)[:8].square().sum().item(), rel=1e-4
    )


def test_shared_embeddings_are_not_trained(bert, config, tmp_path):
    first = config(student={
        "model": "zoo:bert", "args": {"dim": 32, "depth": 2, "heads": 4},
        "start": {"embeddings": "share"},
    })  # fmt: skip
    run = api.distill(first, out=tmp_path / "run")
    from edgekd.models import role

    own = role.load(run, "student", tmp_path)
    teacher = role.load(run, "teacher", tmp_path).model.bert.embeddings
    assert torch.equal(own.tokens.weight, teacher.word_embeddings.weight)
    assert not torch.equal(own.positions.weight, teacher.position_embeddings.weight[:24])


def test_layers_are_compared_at_every_token_that_is_no_padding_and_at_no_other(
    config, tmp_path, monkeypatch
):
    compared, compare = [], tinybert.masked_mse

    def look(s, t, mask):
        compared.append(mask)
        return compare(s, t, mask)

    monkeypatch.setattr(tinybert, "masked_mse", look)
    sections = config(distill={"epochs": 1, "threads": 1, "methods": ["tinybert"], "doctor": False})
    run = api.distill(sections, out=tmp_path / "run")
    resolved, base = api.resolve(run.path)
    data = load(resolved.data, resolved.data.seed, base)
    lengths = (data.inputs[data.train] != data.input.tokens.padding).sum(1)
    assert lengths.min() < lengths.max() <= TOKENS
    # The embeddings, two blocks, and the pairs of tokens of two blocks' scores.
    hidden, scores = ([m for m in compared if m is not None and m.ndim == ndim] for ndim in (3, 4))
    assert len(hidden) + len(scores) == len(compared)
    assert sum(int(m.sum()) for m in hidden) == 3 * lengths.sum()
    assert sum(int(m.sum()) for m in scores) == 2 * (lengths**2).sum()


def test_what_does_not_fit_is_refused_with_what_would(teacher):
    assert "set student.args.dim to 32 or less" in refused(
        student(teacher, dim=64), teacher, Start()
    )
    assert "set student.args.heads to 4" in refused(
        student(teacher, heads=2), teacher, Start(layers="even")
    )
    narrow = student(teacher, dim=16)
    assert "whole layers fit where both have the same dim" in refused(
        narrow, teacher, Start(layers="even")
    )
    wrong = refused(student(teacher), teacher, Start(layers=[0, 2]))
    assert "[0, 2] should be 2 of the teacher's layers 0 to 1" in wrong
    assert "students of zoo:bert" in refused(mlp((TOKENS,), 3), teacher, Start())
    assert "takes parts of BERT only" in refused(student(teacher), mlp((TOKENS,), 3), Start())


@pytest.mark.parametrize(
    "sections",
    [{"teacher": {"model": "onnx:a.onnx"}}, {"distill": {"scheme": "online"}}],
)
def test_only_networks_and_the_plain_scheme_can_be_started_from(config, sections):
    student = {"model": "zoo:bert", "start": {"embeddings": "copy"}}
    with pytest.raises(UsageError, match=r"student\.start"):
        api.resolve(config(student=student, **sections))
