"""U-Net: sizes, files, and the whole line on small pictures."""

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import edgekd
from edgekd.distill.taps import stages
from edgekd.errors import UsageError
from edgekd.models.network import NETWORKS


def make(shape=(3, 16, 24), classes=4, **args):
    torch.manual_seed(0)
    return NETWORKS.get("unet").build(shape, classes, **args)


@pytest.mark.parametrize("separable", [False, True])
def test_a_logit_for_every_class_at_every_pixel(separable):
    network = make(width=4, depth=2, separable=separable)
    assert network(torch.zeros(2, 3, 16, 24)).shape == (2, 4, 16, 24)


def test_separable_ones_are_several_times_smaller():
    sizes = [
        sum(p.numel() for p in make(width=16, separable=s).parameters()) for s in (False, True)
    ]
    assert sizes[0] > 5 * sizes[1]


def test_every_pixel_sees_far_around_it():
    network = make(width=4, depth=3).eval()
    x = torch.randn(1, 3, 16, 24, requires_grad=True)
    network(x)[0, :, 8, 12].sum().backward()
    assert (x.grad.abs().sum((0, 1)) > 0).float().mean() > 0.9


def test_features_are_read_in_the_encoder_from_large_to_small():
    network = make(width=4, depth=2)
    assert stages(network, torch.randn(2, 3, 16, 24)) == ["down.0", "down.1", "down.2"]


@pytest.mark.parametrize(
    ("shape", "args", "told"),
    [
        ((3, 20, 24), {"depth": 3}, "multiples of 8, not 20×24"),
        ((3, 16, 24), {"depth": 9}, "depth 9 should be 1 to 6"),
        ((12,), {}, "is for images"),
    ],
)
def test_what_it_cannot_be_is_told(shape, args, told):
    with pytest.raises(UsageError, match=told):
        make(shape, **args)


def test_a_file_with_any_batch_gives_the_same(tmp_path):
    network = make(width=4, depth=2).eval()
    path, x = tmp_path / "unet.onnx", torch.randn(3, 3, 16, 24)
    torch.onnx.export(
        network, (x[:1],), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["x"], verbose=False,
    )  # fmt: skip
    found = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, network(x).detach(), atol=1e-4)


def pictures(folder, count=60, size=16):
    """A bright square or a disc on a dark ground, 255 at one corner."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    y, x = np.mgrid[:size, :size]
    for i in range(count):
        cy, cx, kind = *random.uniform(4, 12, 2), 1 + i % 2
        near = np.hypot(y - cy, x - cx) if kind == 1 else np.maximum(abs(y - cy), abs(x - cx))
        mask = np.where(near < 3.5, kind, 0).astype(np.uint8)
        grey = 60 + 40 * mask + random.normal(0, 10, mask.shape)
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / f"images/{i}.png")
        mask[0, 0] = 255
        Image.fromarray(mask).save(folder / f"masks/{i}.png")
    (folder / "classes.txt").write_text("ground\ndisc\nsquare\n")


@pytest.mark.slow
def test_pictures_to_a_gated_report(tmp_path):
    pictures(tmp_path / "shapes")
    train = {"epochs": 12, "batch_size": 8, "optimizer": "adamw", "learning_rate": 0.01}
    config = {
        "name": "shapes",
        "data": {"source": f"masks:{tmp_path / 'shapes'}", "augment": {"flip": True, "views": 2}},
        "teacher": {"model": "zoo:unet", "args": {"width": 8, "depth": 2}, "train": train},
        "student": {"model": "zoo:unet", "args": {"width": 4, "depth": 2, "separable": True}},
        "distill": {
            "methods": [{"kd": {"temperature": 2.0}}, "cwd"], "alpha": 0.5, **train, "epochs": 50,
        },
        "quantize": {"max_drop": "20 points"},
        "profile": {"min_seconds": 0.05, "max_seconds": 0.6, "interval": 0.5, "launches": 1},
        "gate": {
            "on_inconclusive": "warn",
            "budgets": [
                # Three seeds: 61, 63 and 96 % in PyTorch. Ground everywhere is about 28 %.
                {"metric": "miou", "min": "40 %"},
                {"metric": "miou_drop", "max": "40 points"},
                {"metric": "agreement", "min": "60 %"},
                {"metric": "parity_error", "max": "1e-3", "variant": "f32"},
            ],
        },
    }  # fmt: skip
    run = edgekd.compress(config, out=tmp_path / "run")
    assert run.gate.verdict != "fail"
    assert {f.accuracy.metric for f in run.verify.files} == {"miou"}
    assert all(0 < f.agreement <= 1 for f in run.verify.files)
    assert run.training("teacher").test.value > 0.6
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Test mean IoU" in text
    assert "Test IoU by class" in text
    with np.load(run.path / "verify/logits.npz") as arrays:
        assert arrays["labels"].shape[1:] == (16, 16)
        assert arrays["onnxruntime/student"].shape[1:] == (3, 16, 16)
