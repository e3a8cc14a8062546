"""A teacher or student of a run as files: card (how to rebuild it), weights, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from edgekd.config.schema import Model
from edgekd.distill.trainer import predict
from edgekd.models import huggingface, resolve
from edgekd.models.weights import load_weights, save_weights
from edgekd.results import Accuracy, History, ModelCard, Role, TrainingReport
from edgekd.statistics import wilson

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset
    from edgekd.pipeline.run import Run


def build(model: Model, role: Role, dataset: Dataset, *, seed: int, base: Path) -> nn.Module:
    """The untrained network, checked: it takes this data and gives one logit per class.

    Raises UsageError, as for a network with another number of classes than the data.
    """
    shape, classes, tokens = dataset.input.shape, len(dataset.classes), dataset.input.tokens
    module = resolve.build(
        model.model,
        model.args,
        input_shape=shape,
        classes=classes,
        seed=seed,
        base=base,
        tokens=tokens,
        where=f"{role}.model",
    )
    resolve.check(module, role=role, input_shape=shape, classes=classes, tokens=tokens)
    return module


def load(run: Run, role: Role, base: Path) -> nn.Module:
    """The finished network of a run, in evaluation mode."""
    return load_network(run.path / role, base)


def load_network(folder: Path, base: Path) -> nn.Module:
    """The network that `save_network` wrote, in evaluation mode."""
    card = ModelCard.read(folder / "model.json")
    if (folder / huggingface.CONFIG).is_file():
        return huggingface.load(folder)
    module = resolve.build(
        card.model,
        card.args,
        input_shape=card.input.shape,
        classes=len(card.classes),
        seed=card.seed,
        base=base,
        start=False,
        tokens=card.input.tokens,
    )
    load_weights(module, folder / "model.safetensors")
    return module.eval()


def save(
    module: nn.Module,
    model: Model,
    role: Role,
    folder: Path,
    dataset: Dataset,
    *,
    seed: int,
    history: History | None,
) -> TrainingReport:
    """Write model.safetensors, model.json, metrics.json and, if trained here, history.json."""
    save_network(module, model, role, folder, dataset, seed=seed, history=history)
    report = TrainingReport(
        validation=evaluate(module, dataset, dataset.validation),
        test=evaluate(module, dataset, dataset.test),
    )
    report.write(folder / "metrics.json")
    return report


def save_network(
    module: nn.Module,
    model: Model,
    role: Role,
    folder: Path,
    dataset: Dataset,
    *,
    seed: int,
    history: History | None,
) -> None:
    """Write model.safetensors, model.json and, if trained here, history.json."""
    save_weights(module, folder / "model.safetensors")
    ModelCard(
        role=role,
        model=model.model,
        args=model.args,
        classes=dataset.classes,
        input=dataset.input,
        parameters=sum(p.numel() for p in module.parameters()),
        seed=seed,
    ).write(folder / "model.json")
    if history is not None:
        history.write(folder / "history.json")


def evaluate(module: nn.Module, dataset: Dataset, indices: np.ndarray) -> Accuracy:
    """Top-1 accuracy of the PyTorch model on the given samples."""
    answers = predict(module, dataset, indices).argmax(1).numpy()
    return accuracy(answers, dataset.labels[indices], len(dataset.classes))


def accuracy_of(logits: np.ndarray, dataset: Dataset, indices: np.ndarray) -> Accuracy | None:
    """Top-1 accuracy of logits (n, classes) for these samples; rows of NaN are left out.

    None where no sample is left.
    """
    known = np.isfinite(logits).all(axis=1)
    if not known.any():
        return None
    labels = dataset.labels[indices[known]]
    return accuracy(logits[known].argmax(1), labels, len(dataset.classes))


def accuracy(answers: np.ndarray, labels: np.ndarray, classes: int) -> Accuracy:
    """Top-1 accuracy with a 95 % Wilson interval; `answers` and `labels` are (n,) class numbers."""
    right = answers == labels
    correct, total = int(right.sum()), len(labels)
    return Accuracy(
        correct=correct,
        total=total,
        value=correct / total,
        interval=wilson(correct, total),
        per_class=tuple(
            (int(right[labels == c].sum()), int((labels == c).sum())) for c in range(classes)
        ),
    )
