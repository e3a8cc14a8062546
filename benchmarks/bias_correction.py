"""What NNCF's fast bias correction does to INT8 files of small networks: why it is off by default.

    python benchmarks/bias_correction.py > benchmarks/results/bias_correction.md

The networks, data and trainings of export_matrix.py (digits, 540 test images). Every network is quantized
with edgekd's default recipe (300 samples), without and with the correction; the rest is the same.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks.export_matrix import ARCHITECTURES, Architecture, digits, train
from edgekd.config.schema import Export
from edgekd.export.exporter import EXPORTERS, Source
from edgekd.pipeline.environment import environment
from edgekd.quantize.backend import quantize
from edgekd.quantize.recipes import Recipe
from edgekd.results import InputSpec, ModelCard
from edgekd.verify.parity import compare
from edgekd.verify.sessions import open_session, outputs

NETWORKS = (
    "mlp", "conv1d", "vgg8", "resnet20", "mobilenetv2", "shufflenetv2", "efficientnet", "dscnn", "convnext",
    "vit",
)  # fmt: skip
RUNTIMES = {"onnx": ("onnxruntime", ".onnx"), "openvino": ("openvino", ".xml")}


def main() -> None:
    """Print the table as Markdown."""
    print("# NNCF's fast bias correction\n")
    print(
        "`python benchmarks/bias_correction.py`; SNR of the INT8 file's logits against PyTorch's, same "
    )
    print(
        "answers, and test accuracy less PyTorch's, on 540 images; trained shortly on the digits, seed 0.\n"
    )
    print(
        "| network | file | without: SNR | same answer | accuracy | with: SNR | same answer | accuracy |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for architecture in ARCHITECTURES:
        if architecture.name.removeprefix("zoo:") in NETWORKS:
            with tempfile.TemporaryDirectory() as folder:
                measure(architecture, Path(folder))
    packages = ", ".join(f"{name} {version(name)}" for name in ("nncf", "onnxruntime", "openvino"))
    print(
        "\nThe correction takes the difference between the mean output of a layer in float32 and that of"
        "\nthe quantized layer fed with every channel's mean. Where inputs are not alike at all places"
        "\n(padded borders, tokens) that is not the mean output, and the bias moves away from"
        f"\nwhere it should be. {packages}; {environment()['machine']['cpu_model']}."
    )


def measure(architecture: Architecture, folder: Path) -> None:
    """A line for each format of one network."""
    torch.manual_seed(0)
    data = digits(architecture.shape)
    module = architecture.build()
    train(module, data, architecture.epochs, architecture.learning_rate)
    with torch.inference_mode():
        reference = module(*data.test.values()).numpy()
    labels = data.test_labels.numpy()
    card = ModelCard(
        role="student", model=architecture.name, args={}, classes=tuple("0123456789"), seed=0,
        input=InputSpec(shape=architecture.shape, scale=1, mean=(0,), std=(1,)), parameters=None,
    )  # fmt: skip
    example = {name: x[:4] for name, x in data.train.items()}
    source = Source(module, card, example, folder / "student.onnx")
    samples = [{name: x[i : i + 1].numpy() for name, x in data.train.items()} for i in range(300)]
    inputs = {name: x.numpy() for name, x in data.test.items()}
    for format, (runtime, suffix) in RUNTIMES.items():
        whole = EXPORTERS.get(format)(source, folder, Export(producer="onnx")).path
        cells = []
        for correction in ("none", "fast"):
            recipe = Recipe(
                name="x",
                bias_correction=correction,
                model_type="transformer" if architecture.transformer else None,
            )
            path = folder / f"{correction}{suffix}"
            quantize(format, whole, path, recipe, samples, onnx=folder / "student.onnx")
            found = outputs(open_session(runtime, path), inputs, 128, where=path.name)
            errors = compare(reference, found, where=path.name)
            gained = np.mean(found.argmax(1) == labels) - np.mean(reference.argmax(1) == labels)
            cells.append(f"{errors.snr:.1f} dB | {errors.agreement:.1%} | {100 * gained:+.2f}")
        print(f"| {architecture.name} | {format} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
