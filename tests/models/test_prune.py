import json

import pytest
import torch
from torch import nn

from edgekd.errors import StageError, UsageError
from edgekd.models import resolve
from edgekd.models.network import NETWORKS
from edgekd.models.prune import prune
from edgekd.models.pruned import PRUNED, resize, sizes
from edgekd.models.weights import load_weights, save_weights

SHAPES = {
    "resnet8": (3, 16, 16), "wrn16-1": (3, 16, 16), "vgg8": (1, 16, 16), "dscnn": (1, 8, 8),
    "mobilenetv2": (3, 32, 32), "efficientnet": (3, 16, 16), "convnext": (3, 16, 16), "vit": (3, 16, 16),
    "mlp": (20,), "conv1d": (2, 40),
}  # fmt: skip


def batch(shape, classes=5, count=10):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    return torch.randn(count, *shape, generator=generator), labels


def network(name, shape):
    torch.manual_seed(0)
    return NETWORKS.get(name).build(shape, 5)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_left_is_rebuilt_from_text_and_safetensors_alone(name, tmp_path):
    shape = SHAPES[name]
    whole, (inputs, labels) = network(name, shape), batch(SHAPES[name])
    left = prune(whole, inputs, [(inputs, labels)], 0.5)
    save_weights(left, tmp_path / "left.safetensors")
    text = json.dumps({"network": f"zoo:{name}", "sizes": sizes(whole, left)})

    again = resolve.build(
        PRUNED, json.loads(text), input_shape=shape, classes=5, seed=9, base=tmp_path
    )
    load_weights(again, tmp_path / "left.safetensors")

    assert torch.equal(again.eval()(inputs), left.eval()(inputs))
    count = [sum(p.numel() for p in m.parameters()) for m in (whole, left)]
    assert 0.1 * count[0] < count[1] < 0.75 * count[0]


def test_cutting_leaves_the_teacher_as_it_was():
    whole, (inputs, labels) = network("resnet8", (1, 8, 8)), batch((1, 8, 8))
    before = {n: v.clone() for n, v in whole.state_dict().items()}
    whole.requires_grad_(False)
    prune(whole, inputs, [(inputs, labels)], 0.5)
    assert all(torch.equal(v, before[n]) for n, v in whole.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in whole.parameters())


def test_channels_that_the_loss_does_not_need_go_first():
    """Half of the hidden units are not connected to the outputs: exactly those are cut."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    useless = torch.arange(0, 16, 2)
    with torch.no_grad():
        whole[2].weight[:, useless] = 0
    inputs, labels = batch((6,), count=40)
    left = prune(whole, inputs, [(inputs, labels)], 0.5)
    useful = [i for i in range(16) if i % 2]
    assert torch.equal(left[0].weight, whole[0].weight[useful])
    assert torch.allclose(left(inputs), whole(inputs), atol=1e-6)


def test_a_network_that_cannot_be_traced_is_one_error_in_one_line():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.fc = nn.Linear(6, 16), nn.Linear(16, 5)

        def forward(self, x):
            # A constant where the layer's size belongs.
            return self.fc(self.inner(x).reshape(-1, 4, 4).flatten(1)[:, :16] + torch.ones(16))

    inputs, labels = batch((6,))
    with pytest.raises(StageError, match="cannot be pruned") as caught:
        prune(Fixed(), inputs, [(inputs, labels)], 0.5)
    assert "\n" not in caught.value.what
    assert "search.prune=[]" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer9": {"weight": [3]}}, "no layer9.weight"),
        ({"fc": {"colour": 3}}, "no fc.colour"),
        ({"fc": {"weight": [0, 64]}}, "no fc.weight"),
        ({"fc": {"training": 1}}, "no fc.training"),
    ],
)
def test_sizes_of_another_network_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        resize(network("resnet8", (1, 8, 8)), change, where="student")


def test_args_that_search_has_not_written_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"args\.sizes: field required"):
        resolve.fingerprint(PRUNED, tmp_path, where="student.model", args={"network": "zoo:mlp"})


def test_lost_start_weights_are_named_unless_other_weights_are_at_hand(tmp_path):
    args = {"network": "zoo:mlp", "sizes": {}, "start": "gone.safetensors"}
    about = {"input_shape": (4,), "classes": 3, "seed": 0, "base": tmp_path}
    with pytest.raises(UsageError, match=r"no such file: .*gone.safetensors"):
        resolve.build(PRUNED, args, **about)
    with pytest.raises(UsageError, match="no such file"):
        resolve.fingerprint(PRUNED, tmp_path, args=args)
    assert resolve.build(PRUNED, args, **about, start=False)


def test_training_starts_from_the_weights_that_were_left(tmp_path):
    whole, (inputs, labels) = network("mlp", (20,)), batch((20,))
    left = prune(whole, inputs, [(inputs, labels)], 0.5)
    save_weights(left, tmp_path / "start.safetensors")
    args = {"network": "zoo:mlp", "sizes": sizes(whole, left), "start": "start.safetensors"}
    built = resolve.build(PRUNED, args, input_shape=(20,), classes=5, seed=3, base=tmp_path)
    assert all(torch.equal(v, left.state_dict()[n]) for n, v in built.state_dict().items())
    # Other weights to start from are another student.
    key = resolve.fingerprint(PRUNED, tmp_path, args=args)
    save_weights(prune(whole, inputs, [(inputs, 1 - labels % 2)], 0.5), tmp_path / args["start"])
    assert resolve.fingerprint(PRUNED, tmp_path, args=args) != key
