"""A teacher or student of a run as files: card (how to rebuild it), weights, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from edgekd.config.schema import Model
from edgekd.distill.trainer import predict
from edgekd.models import huggingface, resolve
from edgekd.models.head import scale_of, scale_outputs
from edgekd.models.weights import load_weights, save_weights
from edgekd.results import Accuracy, History, ModelCard, Role, TrainingReport
from edgekd.tasks.task import of

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset
    from edgekd.pipeline.run import Run


def build(
    model: Model,
    role: Role,
    dataset: Dataset,
    *,
    seed: int,
    base: Path,
    scaled: bool = True,
    where: str | None = None,
) -> nn.Module:
    """The untrained network, checked: it takes this data and gives one logit per class, or what its task
    wants. Where labels are numbers its head is made to give them in their units, unless not `scaled`.

    Raises UsageError, as for a network with another number of classes than the data; `where` is its key
    in the configuration, the role's unless given.
    """
    where = where or role
    shape, classes, tokens = dataset.input.shape, len(dataset.classes), dataset.input.tokens
    module = resolve.build(
        model.model,
        model.args,
        input_shape=shape,
        classes=classes,
        seed=seed,
        base=base,
        tokens=tokens,
        where=f"{where}.model",
    )
    outputs = of(dataset.task).shape(classes, shape)
    resolve.check(module, role=where, input_shape=shape, outputs=outputs, tokens=tokens)
    if scaled and dataset.output is not None:
        module = scale_outputs(module, dataset.output, resolve.example(shape, tokens))
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
    if card.output is not None:
        example = resolve.example(card.input.shape, card.input.tokens)
        module = scale_outputs(module, card.output, example)
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
        task=dataset.task,
        output=scale_of(module),
    ).write(folder / "model.json")
    if history is not None:
        history.write(folder / "history.json")


def evaluate(module: nn.Module, dataset: Dataset, indices: np.ndarray) -> Accuracy:
    """How well the PyTorch model answers the given samples."""
    outputs = predict(module, dataset, indices).numpy()
    return of(dataset.task).score(outputs, dataset.labels[indices], len(dataset.classes))


def accuracy_of(outputs: np.ndarray, dataset: Dataset, indices: np.ndarray) -> Accuracy | None:
    """How well outputs (n, …) answer these samples; those that have NaN are left out.

    None where no sample is left.
    """
    known = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
    if not known.any():
        return None
    labels = dataset.labels[indices[known]]
    return of(dataset.task).score(outputs[known], labels, len(dataset.classes))
