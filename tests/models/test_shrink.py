import pytest
import torch

from edgekd.models import resolve
from edgekd.models.shrink import smaller


def found(model, args, shape, parameters=10**9):
    return smaller(model, args, input_shape=shape, classes=4, parameters=parameters)


@pytest.mark.parametrize(
    ("model", "args", "shape"),
    [
        ("zoo:resnet20", {}, (3, 16, 16)),
        ("zoo:vit", {"dim": 32, "depth": 2, "heads": 4}, (3, 16, 16)),
        ("zoo:bert", {"vocabulary": 50}, (12,)),
        ("zoo:gru", {}, (2, 30)),
        ("zoo:mlp", {"hidden": [40, 20]}, (9,)),
        ("zoo:wrn16-2", {}, (1, 8, 8)),
        ("mine.py:net", {}, (3, 8, 8)),
    ],
)
def test_every_candidate_is_built_and_has_the_size_that_is_said_of_it(model, args, shape, tmp_path):
    specs = found(model, args, shape)
    assert len({(s.model, str(s.args)) for s in specs}) == len(specs) > 2
    for spec in specs[-3:]:
        module = resolve.build(
            spec.model, spec.args, input_shape=shape, classes=4, seed=0, base=tmp_path
        )
        resolve.check(module, role="student", input_shape=shape, outputs=(4,))
        assert sum(p.numel() for p in module.parameters()) == spec.parameters


def test_all_are_smaller_than_the_teacher_the_largest_first():
    whole = sum(p.numel() for p in resolve.build(
        "zoo:resnet20", {}, input_shape=(3, 16, 16), classes=4, seed=0, base=None
    ).parameters())  # fmt: skip
    sizes = [spec.parameters for spec in found("zoo:resnet20", {}, (3, 16, 16), whole)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < whole


def test_members_of_the_family_are_no_deeper_and_keep_the_teachers_other_arguments():
    specs = found("zoo:resnet20", {}, (3, 16, 16))
    depths = {s.model for s in specs if s.family == "resnet"}
    assert depths == {"zoo:resnet8", "zoo:resnet14", "zoo:resnet20"}
    assert {s.args["vocabulary"] for s in found("zoo:bert", {"vocabulary": 50}, (12,))} == {50}


def test_token_ids_get_no_network_that_cannot_read_them():
    assert {s.family for s in found("zoo:bert", {}, (12,))} == {"bert"}


def test_heads_divide_every_scaled_width():
    assert all(s.args.get("dim", 64) % 4 == 0 for s in found("zoo:vit", {}, (3, 16, 16)))


def test_a_width_of_one_is_the_published_network():
    from edgekd.models.network import NETWORKS

    for name in ("resnet20", "vgg8", "resnet8x4"):
        torch.manual_seed(0)
        plain = NETWORKS.get(name).build((3, 16, 16), 4)
        torch.manual_seed(0)
        same = NETWORKS.get(name).build((3, 16, 16), 4, width=1.0)
        assert all(
            torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True)
        )
