"""Stage `distill` once through with untrained networks, on a few samples: what does not go together is told
before hours of training a teacher.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.config.schema import Config, Model, Training, Transfer, Weighted
from edgekd.data.resolve import Dataset
from edgekd.data.transfer import transfer_set
from edgekd.distill.compute import check_device, check_gradient
from edgekd.distill.knowledge_store import FOLDER
from edgekd.distill.method import Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.suggest import suggested
from edgekd.distill.taps import Tapped
from edgekd.distill.workshop import check_store, numbered, population, seen
from edgekd.errors import UsageError
from edgekd.models import role
from edgekd.models.resolve import line_of
from edgekd.models.start import start_from
from edgekd.models.weights import load_weights
from edgekd.pipeline.stages import Context
from edgekd.teachers.kinds.torch import TorchTeacher
from edgekd.teachers.teacher import TORCH, kind_of

# No more than show something; fewer than a step has a network may not take.
SAMPLES = 32


def rehearse(context: Context) -> None:
    """Raises UsageError, with its key, for what stage `distill` of this run would stumble over.

    Taps, transfer set, networks of the scheme, devices, the folder of what is known. Writes nothing.
    """
    config, dataset, base = context.config, context.dataset, context.base
    for where, training in _trainings(config):
        check_device(training.compute, f"{where}.compute.device")
    if config.distill.knowledge.store and config.distill.methods.entries:
        _check_folder(context.run.path.parent / FOLDER)
    learned = dataset
    if config.distill.transfer != Transfer():
        learned = transfer_set(
            dataset, config.distill.transfer, config.data, config.data.seed, base
        )
    scheme = config.distill.scheme.entry
    for where, network in _trained(config):
        module = _network(context, network, where)
        if isinstance(network, Weighted) and network.weights:
            load_weights(module, base / network.weights)
        else:
            _check_trains(module, context, f"{where} {network.model}")
    scheme.check_data(_network(context, config.student), dataset)
    if config.student.start is not None and _is_network(config.teacher):
        student, teacher = (_network(context, model) for model in (config.student, config.teacher))
        start_from(student, teacher, config.student.start)
    if config.distill.methods.entries:
        for of_teacher, of_student in scheme.lessons(config):
            _lesson(context, learned, of_teacher, of_student)


def _trained(config: Config) -> Iterator[tuple[str, Model]]:
    """The networks that are trained here, with their keys."""
    scheme = config.distill.scheme.entry
    if _is_network(config.teacher) and not config.teacher.weights:
        yield "teacher", config.teacher
    yield "student", config.student
    for key, network in scheme.networks().items():
        yield f"distill.scheme.{scheme.name}.{key}", network


def _trainings(config: Config) -> Iterator[tuple[str, Training]]:
    scheme = config.distill.scheme.entry
    if _is_network(config.teacher) and (scheme.trains_teachers or not config.teacher.weights):
        yield "teacher.train", config.teacher.train
    yield "distill", config.distill
    if config.quantize is not None and config.quantize.qat is not None:
        yield "quantize.qat", config.quantize.qat


def _check_folder(folder: Path) -> None:
    """What is not there yet is made beside the runs."""
    place = folder if folder.exists() else folder.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(
            "what teachers say is kept there, and it cannot be written to",
            where=str(folder),
            fix="make it writable, or set distill.knowledge.store to false",
        )


def _is_network(model: Model) -> bool:
    """Whether it can be built here."""
    return kind_of(model.model).kind == TORCH


def _rows(config: Config, dataset: Dataset) -> np.ndarray:
    """The samples of a small step."""
    return dataset.train[: min(config.distill.batch_size, SAMPLES)]


def _network(context: Context, model: Model, where: str | None = None) -> nn.Module:
    """Untrained."""
    config = context.config
    where = where or ("teacher" if model is config.teacher else "student")
    return role.build(
        model, "student", context.dataset, seed=config.seed, base=context.base, where=where
    )


def _check_trains(module: nn.Module, context: Context, where: str) -> None:
    """Raises UsageError for a network that fails in training mode, or that nothing can be learned from."""
    inputs = context.dataset.tensor(_rows(context.config, context.dataset))
    try:
        copy.deepcopy(module)  # tried by the doctor, and where steps are measured
        outputs = module.train()(inputs)
    except Exception as error:
        raise UsageError(
            f"fails in training, on inputs of shape {tuple(inputs.shape)}: {line_of(error)}",
            where=where,
        ) from None
    if not isinstance(outputs, torch.Tensor):
        raise UsageError(
            f"gives a {type(outputs).__name__} in training; should give the logits alone",
            where=where,
        )
    kinds = {p.dtype for p in module.parameters()} | {outputs.dtype}
    if others := sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}):
        raise UsageError(
            f"has weights or outputs of {', '.join(others)}; should have float32",
            where=where,
            fix="lower precision is distill.compute.precision's, and quantization's",
        )
    check_gradient(outputs, where)


def _lesson(context: Context, dataset: Dataset, of_teacher: Model, of_student: Model) -> None:
    """The first step of a student of this teacher, where that is a network here, on a transfer set."""
    config = context.config
    if not _is_network(of_teacher):
        return
    student = _network(context, of_student).train()
    teacher = TorchTeacher(_network(context, of_teacher))
    methods = config.distill.methods
    entries = suggested(dataset)[1] if methods.auto else methods.entries
    objective = Objective(methods=entries)
    check_store(entries, config.distill.knowledge)
    rows = _rows(config, dataset)
    inputs, indices = dataset.tensor(rows), torch.from_numpy(rows)
    objective.prepare(student, teacher.module, inputs[:4], 0, population(dataset))
    known = numbered(seen(teacher, objective.teacher_taps), dataset.input)(inputs, indices, 0)
    with Tapped(student, objective.student_taps) as tapped:
        answer = Knowledge(*tapped(inputs))
    objective.try_out(answer, known, torch.from_numpy(dataset.labels)[indices])
