"""The reference networks against the sizes that their papers and the published tables state."""

import json
import os
import subprocess
import sys

import pytest
import torch

from edgekd.errors import UsageError
from edgekd.models.network import NETWORKS
from edgekd.models.resolve import build, check
from edgekd.tasks.task import of

# Millions of parameters on CIFAR-100, as in the tables of Tian 2020 (and He 2016 for ResNet-110).
PUBLISHED = {
    "resnet8": 0.084, "resnet14": 0.181, "resnet20": 0.278, "resnet32": 0.473, "resnet44": 0.667,
    "resnet56": 0.862, "resnet110": 1.737, "resnet8x4": 1.234, "resnet32x4": 7.434,
    "wrn16-1": 0.181, "wrn16-2": 0.703, "wrn40-1": 0.570, "wrn40-2": 2.255,
    "vgg8": 3.965, "vgg11": 9.277, "vgg13": 9.462, "vgg16": 14.774, "vgg19": 20.087,
    "mobilenetv2": 0.813, "shufflenetv1": 0.949, "shufflenetv2": 1.356,
}  # fmt: skip


def make(name, shape, classes, tmp_path, **args):
    return build(f"zoo:{name}", args, input_shape=shape, classes=classes, seed=0, base=tmp_path)


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_the_parameter_count_is_the_published_one(name, millions):
    with torch.device("meta"):
        module = NETWORKS.get(name).build((3, 32, 32), 100)
    assert round(size(module) / 1e6, 3) == pytest.approx(millions, abs=0.0011)


def test_efficientnet_at_full_width_has_the_parameters_of_b0():
    with torch.device("meta"):
        module = NETWORKS.get("efficientnet").build((3, 224, 224), 1000, width=1.0)
    assert size(module) == 5_288_548


def test_every_network_takes_small_grey_images_and_trains(tmp_path):
    for name in NETWORKS.names():
        if name.startswith(("vgg1", "resnet110", "resnet32x4")) or name == "bert":
            continue  # like their small siblings, but slow; and one that takes no images
        module = make(name, (1, 8, 8), 7, tmp_path).train()
        outputs = of(NETWORKS.get(name).task).shape(7, (1, 8, 8))
        check(module, role="student", input_shape=(1, 8, 8), outputs=outputs)
        assert module.training
        logits = module(torch.randn(4, 1, 8, 8))
        labels = torch.arange(4).reshape(4, *[1] * (logits.ndim - 2)).expand(4, *logits.shape[2:])
        torch.nn.functional.cross_entropy(logits, labels).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters()), (
            name
        )


def test_other_image_sizes_work(tmp_path):
    for name in ("resnet8", "wrn16-1", "mobilenetv2", "shufflenetv2", "dscnn", "efficientnet",
                 "convnext"):  # fmt: skip
        check(
            make(name, (3, 29, 45), 5, tmp_path),
            role="teacher",
            input_shape=(3, 29, 45),
            outputs=(5,),
        )


def test_the_digits_student_has_5194_parameters(tmp_path):
    assert size(make("dscnn", (1, 8, 8), 10, tmp_path)) == 5194
    assert size(make("dscnn", (1, 8, 8), 10, tmp_path, width=8, depth=3)) == 1434


def test_an_mlp_takes_flat_inputs(tmp_path):
    mlp = make("mlp", (20,), 3, tmp_path, hidden=[8], dropout=0.5)
    assert mlp.eval()(torch.zeros(2, 20)).shape == (2, 3)


def test_networks_over_time_take_signals_of_one_and_of_several_channels(tmp_path):
    for name in ("conv1d", "lstm", "gru"):
        for shape in ((40,), (3, 40)):
            check(make(name, shape, 4, tmp_path), role="teacher", input_shape=shape, outputs=(4,))


def test_a_recurrent_network_reads_an_image_row_by_row(tmp_path):
    module = make("lstm", (2, 5, 3), 4, tmp_path).eval()
    x = torch.randn(1, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    state = None
    for row in range(5):
        _, state = module.recurrent(x[:, :, row].reshape(1, 1, 6), state)
    assert torch.allclose(module(x), module.fc(state[0][-1]), atol=1e-6)


def test_what_the_mask_of_bert_hides_changes_nothing(tmp_path):
    module = make("bert", (12,), 3, tmp_path).eval()
    ids = torch.randint(1, 1000, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < 7).expand(4, -1).long()
    other = torch.where(mask == 1, ids, ids.flip(0))
    assert torch.allclose(module(ids, mask), module(other, mask), atol=1e-6)
    assert not torch.allclose(module(ids), module(other), atol=1e-3)
    padded = torch.where(mask == 1, ids, 0)
    assert torch.allclose(module(padded), module(ids, mask), atol=1e-6)
    check(module, role="teacher", input_shape=(12,), outputs=(3,))


@pytest.mark.parametrize(
    ("name", "shape", "args", "message"),
    [
        ("resnet20", (64,), {}, "is for images"),
        ("resnet20", (1, 7, 20), {}, "8×8 pixels or more"),
        ("vit", (1, 9, 8), {}, "patch 4 does not divide"),
        ("vit", (1, 8, 8), {"heads": 3}, "heads 3 does not divide dim 64"),
        ("bert", (1, 8, 8), {}, "takes token ids"),
        ("convnext", (1, 8, 8), {"patch": 4}, "need larger images"),
        ("convnext", (1, 8, 8), {"dims": [8]}, "should be as long"),
        ("resnet21", (1, 8, 8), {}, "did you mean 'resnet"),
        ("mlp", (4,), {"hiden": [3]}, "it takes: hidden, dropout, input_dropout, norm"),
        ("mlp", (4,), {"hidden": "wide"}, "cannot be built with these args"),
        ("dscnn", (1, 8, 8), {"width": -1}, "cannot be built with these args"),
    ],
)
def test_what_cannot_be_built_says_why(tmp_path, name, shape, args, message):
    with pytest.raises(UsageError) as caught:
        make(name, shape, 5, tmp_path, **args)
    assert message in str(caught.value)
    assert f"zoo:{name}" in str(caught.value)


def test_the_seed_alone_decides_the_initial_weights(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make("resnet8", (1, 8, 8), 3, tmp_path).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = make("resnet8", (1, 8, 8), 3, tmp_path).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_lists_them_from_small_to_large():
    result = subprocess.run(
        [sys.executable, "-m", "edgekd", "zoo", "--json"],
        capture_output=True, text=True, env={**os.environ},
    )  # fmt: skip
    listed = json.loads(result.stdout)
    assert {entry["name"] for entry in listed} == set(NETWORKS.names())
    sizes = [entry["parameters"] for entry in listed]
    assert sizes == sorted(sizes)
