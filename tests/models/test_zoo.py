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


def test_every_network_takes_small_grey_images_and_trains(tmp_path):
    for name in NETWORKS.names():
        if name.startswith(("vgg1", "resnet110", "resnet32x4")):
            continue  # like their small siblings, but slow
        module = make(name, (1, 8, 8), 7, tmp_path).train()
        check(module, role="student", input_shape=(1, 8, 8), classes=7)
        assert module.training
        loss = torch.nn.functional.cross_entropy(module(torch.randn(4, 1, 8, 8)), torch.arange(4))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters()), (
            name
        )


def test_other_image_sizes_work(tmp_path):
    for name in ("resnet8", "wrn16-1", "mobilenetv2", "shufflenetv2", "dscnn"):
        check(
            make(name, (3, 29, 45), 5, tmp_path), role="teacher", input_shape=(3, 29, 45), classes=5
        )


def test_the_digits_student_has_5194_parameters(tmp_path):
    assert size(make("dscnn", (1, 8, 8), 10, tmp_path)) == 5194
    assert size(make("dscnn", (1, 8, 8), 10, tmp_path, width=8, depth=3)) == 1434


def test_an_mlp_takes_flat_inputs(tmp_path):
    mlp = make("mlp", (20,), 3, tmp_path, hidden=[8], dropout=0.5)
    assert mlp.eval()(torch.zeros(2, 20)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "shape", "args", "message"),
    [
        ("resnet20", (64,), {}, "is for images"),
        ("resnet20", (1, 7, 20), {}, "8×8 pixels or more"),
        ("vit", (1, 9, 8), {}, "patch 4 does not divide"),
        ("vit", (1, 8, 8), {"heads": 3}, "heads 3 does not divide dim 64"),
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
