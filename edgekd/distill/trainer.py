"""One training loop for teachers and students. Killed at any point, it goes on to the same weights.

Everything random is a pure function of the seed and the step (order of samples, views) or is in
the checkpoint (dropout's generator), so that resuming is exact on the same number of threads.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.artifacts import atomic_path
from edgekd.config.schema import Training
from edgekd.data.resolve import Dataset
from edgekd.data.views import Views
from edgekd.distill.method import Knowledge
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Tapped
from edgekd.errors import Interrupted, StageError
from edgekd.progress import Progress
from edgekd.results import Epoch, History

# (inputs, sample indices, view number) -> the teacher's knowledge of that batch
TeacherKnowledge = Callable[[Tensor, Tensor, int], Knowledge]


@dataclass
class State:
    """Where a training is: `step` of `epoch` is the next to be done."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def train(
    model: nn.Module,
    dataset: Dataset,
    views: Views,
    objective: Objective,
    config: Training,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    name: str,
    teacher: TeacherKnowledge | None = None,
) -> History:
    """Train `model` in place on the training split and leave it with the selected weights.

    The epoch is selected on the validation split (`config.select`); the test split is not
    looked at. `checkpoint` is written every `config.checkpoint_every` seconds and on Ctrl-C or
    SIGTERM, and picked up when it exists. `views.count` views cycle over the epochs.
    Raises StageError when a loss is not finite, Interrupted after Ctrl-C.
    """
    with (
        _threads(config.threads),
        _stop_signals() as stop,
        Tapped(model, objective.student_taps) as student_model,
    ):
        # What the losses have to learn themselves is trained beside the student.
        everything = nn.ModuleDict({"student": model, "losses": objective.trained})
        objective.trained.train()
        optimizer = _optimizer(everything, config)
        torch.manual_seed(seed)
        state = _load(checkpoint, everything, optimizer, progress) or State()
        steps = _steps_per_epoch(len(dataset.train), config.batch_size)
        started = time.monotonic() - state.seconds
        saved = time.monotonic()
        total, done = config.epochs * steps, state.epoch * steps + state.step
        labels = torch.from_numpy(dataset.labels)
        with progress.task(name, total, done) as task:
            while state.epoch < config.epochs:
                order = _order(dataset.train, seed, state.epoch)
                view = state.epoch % views.count
                model.train()
                while state.step < steps:
                    first = state.step * config.batch_size
                    indices = order[first : first + config.batch_size]
                    rate = learning_rate(config, state.epoch * steps + state.step, total)
                    for group in optimizer.param_groups:
                        group["lr"] = rate

                    inputs = views.batch(indices, view)
                    known = teacher(inputs, indices, view) if teacher else None
                    student = Knowledge(*student_model(inputs))
                    terms = objective.terms(student, known, labels[indices], state.epoch)
                    loss = torch.stack(list(terms.values())).sum()
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    if config.max_norm is not None:
                        _limit_norms(model, config.max_norm)

                    _account(state, terms, name)
                    state.step += 1
                    task.advance(epoch=f"{state.epoch + 1}/{config.epochs}", loss=loss.item())
                    state.seconds = time.monotonic() - started
                    if stop.is_set() or time.monotonic() - saved >= config.checkpoint_every:
                        _save(checkpoint, everything, optimizer, state)
                        saved = time.monotonic()
                    if stop.is_set():
                        raise Interrupted(
                            f"stopped while training the {name}",
                            fix="run the same command again to go on from here",
                        )
                _end_epoch(state, model, dataset, config, steps)
                task.advance(
                    0, **{"val. accuracy": f"{state.epochs[-1]['validation_accuracy']:.2%}"}
                )
        model.load_state_dict(state.best_weights)
        model.eval()
    return History(
        epochs=tuple(Epoch(**epoch) for epoch in state.epochs),
        best=state.best_epoch,
        seconds=round(state.seconds, 3),
    )


def learning_rate(config: Training, step: int, total: int) -> float:
    """Linear warm-up, then cosine to zero, three steps of ×0.1, or constant."""
    warmup = config.warmup * total
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, total - warmup)
    match config.schedule:
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * share)) / 2
        case "step":
            drops = sum(step / total >= mark for mark in (0.625, 0.75, 0.875))
            return config.learning_rate * 0.1**drops
        case "constant":
            return config.learning_rate


def standard_error(share: float, total: int) -> float:
    """Of a share of `total`; above zero for a share of 1 too (Agresti and Coull 1998: plus 4)."""
    adjusted = (share * total + 2) / (total + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (total + 4))


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset, indices: np.ndarray, batch: int = 256) -> Tensor:
    """Logits (n, classes) of the unaugmented samples, in evaluation mode."""
    was_training = model.training
    model.eval()
    chunks = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    logits = torch.cat([model(dataset.tensor(chunk)) for chunk in chunks])
    model.train(was_training)
    return logits


def _optimizer(model: nn.Module, config: Training) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


@torch.no_grad()
def _limit_norms(model: nn.Module, most: float) -> None:
    """Shorten every unit's incoming weight vector to at most `most` (Srivastava 2014, §5.1)."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.copy_(weight.flatten(1).renorm(2, 0, most).view_as(weight))


def _steps_per_epoch(samples: int, batch_size: int) -> int:
    full, rest = divmod(samples, batch_size)
    # Batch normalisation cannot be trained on a single sample: it waits for another epoch.
    return max(1, full + (rest > 1))


def _order(indices: np.ndarray, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(indices))


def _account(state: State, terms: dict[str, Tensor], name: str) -> None:
    for term, value in terms.items():
        number = value.item()
        if not math.isfinite(number):
            raise StageError(
                f"the loss term {term!r} became {number}",
                where=f"training of the {name}, epoch {state.epoch + 1}, step {state.step + 1}",
                fix="lower learning_rate, raise warmup, or check the data for extreme values",
            )
        state.sums[term] = state.sums.get(term, 0.0) + number


def _end_epoch(
    state: State, model: nn.Module, dataset: Dataset, config: Training, steps: int
) -> None:
    logits = predict(model, dataset, dataset.validation)
    labels = torch.from_numpy(dataset.labels[dataset.validation])
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    loss = F.cross_entropy(logits, labels).item()
    if not math.isfinite(loss):
        raise StageError(
            f"the validation loss became {loss}",
            where=f"epoch {state.epoch + 1}",
            fix="lower learning_rate, or check the data for extreme values",
        )
    state.epochs.append(
        {
            "epoch": state.epoch,
            "seconds": round(state.seconds, 3),
            "learning_rate": learning_rate(
                config, (state.epoch + 1) * steps - 1, config.epochs * steps
            ),
            "losses": {term: value / steps for term, value in state.sums.items()},
            "validation_accuracy": accuracy,
            "validation_loss": loss,
        }
    )
    best = max(epoch["validation_accuracy"] for epoch in state.epochs)
    if config.select == "last" or accuracy >= best - standard_error(best, len(labels)):
        state.best_epoch = state.epoch
        state.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state.epoch, state.step, state.sums = state.epoch + 1, 0, {}


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    with atomic_path(path) as temporary:
        torch.save(
            {
                "state": vars(state),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": torch.get_rng_state(),
                "threads": torch.get_num_threads(),
            },
            temporary,
        )


def _load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> State | None:
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True)
    except Exception as error:
        raise StageError(
            f"this checkpoint cannot be read: {type(error).__name__}",
            where=str(path),
            fix="delete it to train from the beginning",
        ) from None
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["generator"])
    state = State(**saved["state"])
    progress.say(f"  going on from epoch {state.epoch + 1}, step {state.step + 1}")
    if saved["threads"] != torch.get_num_threads():
        progress.say(
            f"  note: {torch.get_num_threads()} threads now, {saved['threads']} before; the "
            "weights may differ in the last bits from an uninterrupted training"
        )
    return state


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set a flag that is looked at between steps; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
