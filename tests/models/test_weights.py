"""Weights: round trip, common checkpoint layouts, and files that must not be trusted."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekd.errors import UsageError
from edgekd.models.weights import load_weights, save_weights


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_round_trip_is_exact_and_tied_weights_survive(tmp_path):
    model = network()
    model[2].weight = nn.Parameter(torch.randn(2, 4))
    model.add_module("again", model[2])
    save_weights(model, tmp_path / "w.safetensors")
    other = network(1)
    other.add_module("again", other[2])
    load_weights(other, tmp_path / "w.safetensors")
    assert same(model, other)


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 0.1}},
    lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
])  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_common_checkpoints_are_understood(tmp_path, wrap, zipped):
    model, other = network(), network(1)
    path = tmp_path / "checkpoint.pt"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    load_weights(other, path)
    assert torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(model[1].running_var, other[1].running_var)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_model_is_refused_and_not_run(tmp_path, zipped):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for value in (Bomb(), {"state_dict": network().state_dict(), "hook": Bomb()}):
        torch.save(value, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=r"model\.pt: holds pickled Python objects"):
            load_weights(network(), tmp_path / "model.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match=r"model\.pkl"):
        load_weights(network(), tmp_path / "model.pkl")
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(UsageError, match="save only its weights"):
        load_weights(network(), tmp_path / "whole.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\3\4 not a zip", b"\x80\x02.", b"\xff" * 100]
)
def test_files_that_are_no_checkpoints(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        load_weights(network(), tmp_path / name)


def test_a_file_cut_short(tmp_path):
    save_weights(network(), tmp_path / "w.safetensors")
    torch.save(network().state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(UsageError, match=name):
            load_weights(network(), path)


def test_a_checkpoint_without_weights(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="no mapping of names to tensors"):
        load_weights(network(), tmp_path / "w.pt")


def test_weights_of_another_network_say_how_they_differ(tmp_path):
    save_weights(network(width=5), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"'0\.weight' is \(5, 3\) in the file and \(4, 3\)"):
        load_weights(network(), tmp_path / "w.safetensors")
    save_file({"0.weight": torch.zeros(4, 3), "head": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(
        UsageError, match=r"missing, such as '0\.bias'; 1 are unknown, such as 'head'"
    ):
        load_weights(network(), tmp_path / "w.safetensors")


def test_weights_that_are_not_finite(tmp_path):
    model = network()
    model[0].bias.data[1] = float("nan")
    save_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"'0\.bias' has values that are not finite"):
        load_weights(network(), tmp_path / "w.safetensors")
