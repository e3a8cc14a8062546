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

from edgekd.artifacts import atomic_path
from edgekd.config.schema import Training
from edgekd.data.resolve import Dataset
from edgekd.data.views import Views
from edgekd.distill import parallel
from edgekd.distill.compute import Run, autocast, check_gradient, choose, compiled, laid_out, place
from edgekd.distill.memory import kept_memory
from edgekd.distill.method import Knowledge
from edgekd.distill.objective import Objective, hard_loss
from edgekd.distill.taps import Tapped
from edgekd.errors import Interrupted, StageError
from edgekd.models.weights import not_finite
from edgekd.progress import Progress
from edgekd.results import Computing, Epoch, History
from edgekd.signals import forget_alternate_stack, told_to_end
from edgekd.tasks.task import of

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
    until: int | None = None,
) -> History:
    """Train `model` in place on the training split and leave it with the selected weights.

    With `until` it stops after so many epochs of the whole training, as selected by then, and leaves its
    checkpoint: the next call goes on to the same weights as if it had never stopped.

    The epoch is selected on the validation split (`config.select`); the test split is not
    looked at. `checkpoint` is written every `config.checkpoint_every` seconds and on Ctrl-C or
    SIGTERM, and picked up when it exists. `views.count` views cycle over the epochs.
    With several processes (`parallel`) each takes its share of every batch; the first one saves.
    Raises StageError when a loss is not finite, Interrupted after Ctrl-C.
    """
    steps = _steps_per_epoch(len(dataset.train), config.batch_size)
    total, alone = config.epochs * steps, objective.alone
    last = config.epochs if until is None else min(until, config.epochs)
    label = of(dataset.task).label
    with kept_memory(), _threads(config.threads), _stop_signals() as stop:
        found = parallel.told(_read(checkpoint) if parallel.rank() == 0 else None)
        computing = _computing(found, model, dataset, views, config, seed, total, progress)
        if computing.threads is not None and config.threads is None:
            torch.set_num_threads(computing.threads)
        views = views.on(computing.device)
        # What the losses have to learn themselves is trained beside the student.
        everything = nn.ModuleDict({"student": model, "losses": objective.trained})
        place(everything, computing)
        objective.trained.train()
        optimizer = _optimizer(everything, config)
        torch.manual_seed(seed + parallel.rank())
        state = State()
        if found:
            state = _restore(checkpoint, found, everything, optimizer, progress)
        _begin_momentum(optimizer)
        started = time.monotonic() - state.seconds
        saved = time.monotonic()
        with (
            Tapped(model, objective.student_taps) as tapped,
            progress.task(name, last * steps, state.epoch * steps + state.step) as task,
        ):
            student_model: Run = tapped.__call__
            if computing.compile and not tapped.compilable:
                progress.say("  note: attention maps are read, so the step is not compiled")
            elif computing.compile:
                student_model = compiled(student_model, progress)
            while state.epoch < last:
                order = _order(dataset.train, seed, state.epoch)
                view = state.epoch % views.count
                losses = Losses(state, name)
                model.train()
                while state.step < steps:
                    first = state.step * config.batch_size
                    batch = order[first : first + config.batch_size]
                    indices = parallel.share(batch)
                    rate = scheduled(config, state.epoch * steps + state.step, steps, alone)
                    for group in optimizer.param_groups:
                        group["lr"] = rate

                    inputs = laid_out(views.batch(indices, view), computing)
                    known = teacher(inputs, indices, view) if teacher else None
                    with autocast(computing):
                        answer = student_model(inputs)
                    student = Knowledge(*answer).float()
                    labels, targets = views.labels(indices, view), views.targets(indices, view)
                    terms = objective.terms(student, known, labels, state.epoch, targets)
                    # A process with a larger share of the batch counts for more in the mean.
                    weight = len(indices) * parallel.count() / len(batch)
                    loss = torch.stack(list(terms.values())) * weight
                    check_gradient(loss)
                    optimizer.zero_grad()
                    loss.sum().backward()  # type: ignore[no-untyped-call]
                    stopping = _exchange(everything, loss, stop)
                    optimizer.step()
                    if config.max_norm is not None:
                        _limit_norms(model, config.max_norm)

                    losses.add(terms, loss.detach())
                    state.step += 1
                    state.seconds = time.monotonic() - started
                    task.advance(epoch=f"{state.epoch + 1}/{config.epochs}", loss=losses.latest())
                    if parallel.count() == 1:
                        stopping = stop.is_set()
                        due = time.monotonic() - saved >= config.checkpoint_every
                    else:
                        due = state.step == steps  # at a step that all agree on
                    if stopping or due:
                        losses.read()
                        _save(checkpoint, everything, optimizer, state, computing)
                        saved = time.monotonic()
                    if stopping:
                        raise Interrupted(
                            f"stopped while training the {name}",
                            fix="run the same command again to go on from here",
                        )
                losses.read()
                _end_epoch(state, model, dataset, config, steps, alone)
                task.advance(
                    0, **{f"val. {label}": f"{state.epochs[-1]['validation_accuracy']:.2%}"}
                )
        if until is not None:
            _save(checkpoint, everything, optimizer, state, computing)
        model.load_state_dict(state.best_weights)
        place(everything, Computing())
        model.eval()
    return History(
        epochs=tuple(Epoch(**epoch) for epoch in state.epochs),
        best=state.best_epoch,
        seconds=round(state.seconds, 3),
        computing=computing,
    )


class Losses:
    """The sums of this epoch's terms, on the device: it is waited for only when they are read."""

    every = 0.5  # seconds between two looks at a device that computes by itself

    def __init__(self, state: State, name: str) -> None:
        self.state, self.name = state, name
        self.names: list[str] = list(state.sums)
        self.sums: Tensor | None = None
        self.broken: Tensor | None = None  # the first step at which each was not finite, or −1
        self.last: Tensor | None = None
        self.shown, self.looked = math.nan, 0.0

    def add(self, terms: dict[str, Tensor], values: Tensor) -> None:
        """One step's terms, and their values (k,)."""
        if self.sums is None or self.broken is None:
            self.names = list(terms)
            before = [self.state.sums.get(name, 0.0) for name in terms]
            self.sums = torch.tensor(before, dtype=torch.float64, device=values.device)
            self.broken = torch.full_like(self.sums, -1)
        # In float64, one step after the other: a resumed training adds up the same.
        self.sums += values.double()
        new = (self.broken < 0) & ~values.isfinite()
        self.broken.masked_fill_(new, self.state.step)
        self.last = values

    def latest(self) -> float:
        """The loss of a recent step, for people to see; of the last one on the CPU."""
        now = time.monotonic()
        if self.last is not None and (self.last.is_cpu or now - self.looked > self.every):
            self.shown, self.looked = self.last.sum().item(), now
            if not math.isfinite(self.shown):
                self.read()
        return self.shown

    def read(self) -> None:
        """Bring the sums to `state`. Raises StageError for a term that was not finite."""
        if self.sums is None or self.broken is None:
            return
        for term, total, step in zip(
            self.names, self.sums.tolist(), self.broken.tolist(), strict=True
        ):
            if step >= 0:
                begun = self.state.epoch > 0 or step > 0
                raise StageError(
                    f"the loss term {term!r} became {total}",
                    where=f"training of the {self.name}, epoch {self.state.epoch + 1}, "
                    f"step {int(step) + 1}",
                    fix="lower learning_rate, raise warmup, or check the data for extreme values"
                    if begun
                    else f"nothing was learned yet: look at the settings of {term!r}, the initial weights "
                    "and the data, for extreme values",
                )
            self.state.sums[term] = total


def scheduled(config: Training, step: int, steps: int, alone: int) -> float:
    """The learning rate of a step, of `steps` in an epoch: an initialisation of `alone` epochs has a schedule
    of its own, as in the papers, and what follows a whole one.
    """
    first, last = 0, alone * steps
    if step >= last:
        first, last = last, config.epochs * steps
    return learning_rate(config, step - first, last - first)


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


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset, indices: np.ndarray, batch: int = 256) -> Tensor:
    """Outputs (n, …) of the unaugmented samples, in evaluation mode, float32 on the CPU."""
    was_training = model.training
    model.eval()
    weights = next(model.parameters(), None)
    device = "cpu" if weights is None else weights.device
    chunks = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    logits = torch.cat([model(dataset.tensor(chunk).to(device)) for chunk in chunks])
    model.train(was_training)
    return logits.cpu()


def _optimizer(model: nn.Module, config: Training) -> torch.optim.Optimizer:
    # One pass over each weight instead of several: on the CPU 3 to 6 times as fast.
    fused = all(parameter.is_floating_point() for parameter in model.parameters())
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        model.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zeros where there is none yet.

    PyTorch's fused SGD fails where a weight gets its first gradient after others have had theirs, as the
    student's head does after an initialisation.
    """
    for group in optimizer.param_groups:
        for weight in group["params"] if group.get("momentum") else ():
            if not weight.requires_grad:
                continue
            state = optimizer.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)


@torch.no_grad()
def _limit_norms(model: nn.Module, most: float) -> None:
    """Shorten every unit's incoming weight vector to at most `most` (Srivastava 2014, §5.1)."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.copy_(weight.flatten(1).renorm(2, 0, most).view_as(weight))


def _computing(
    found: dict[str, Any] | None,
    model: nn.Module,
    dataset: Dataset,
    views: Views,
    config: Training,
    seed: int,
    steps: int,
    progress: Progress,
) -> Computing:
    """How steps are computed: as before the interruption, or chosen now by the first process."""
    if found:
        return Computing(**found["computing"])
    chosen = None
    if parallel.rank() == 0:
        batch = parallel.share(_order(dataset.train, seed, 0)[: config.batch_size])
        inputs, labels = views.batch(batch, 0), views.labels(batch, 0)
        threads = config.threads is None and parallel.count() == 1
        chosen = choose(config.compute, model, inputs, labels, steps, threads=threads)
        if chosen.milliseconds:
            times = ", ".join(f"{how} {ms:.0f}" for how, ms in chosen.milliseconds.items())
            progress.say(f"  computed on {chosen} (ms per step: {times})")
    computing = parallel.told(chosen)
    assert computing is not None
    return computing


def _exchange(model: nn.Module, loss: Tensor, stop: threading.Event) -> bool:
    """Average what the processes found in this step; whether any of them is to stop."""
    if parallel.count() == 1:
        return stop.is_set()
    flag = torch.tensor([float(stop.is_set())], device=loss.device)
    parallel.average(model, (loss.detach(), flag))
    return bool(flag.item() > 0)


def _steps_per_epoch(samples: int, batch_size: int) -> int:
    full, rest = divmod(samples, batch_size)
    # Batch normalisation cannot be trained on a single sample: it waits for another epoch.
    return max(1, full + (rest >= 2 * parallel.count()))


def _order(indices: np.ndarray, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(indices))


def _end_epoch(
    state: State,
    model: nn.Module,
    dataset: Dataset,
    config: Training,
    steps: int,
    alone: int,
) -> None:
    # A loss can be finite and its gradient not, as that of a square root at 0.
    broken = not_finite(model.state_dict())
    if broken is not None:
        raise StageError(
            f"the weights {broken!r} became values that are not finite",
            where=f"epoch {state.epoch + 1}",
            fix="lower learning_rate, or look at what this layer computes: its gradient is not finite",
        )
    logits = predict(model, dataset, dataset.validation)
    labels = torch.from_numpy(dataset.labels[dataset.validation])
    task = of(dataset.task)
    accuracy = task.value(logits.numpy(), labels.numpy())
    loss = hard_loss(dataset)(logits, labels).item()
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
            "learning_rate": scheduled(config, (state.epoch + 1) * steps - 1, steps, alone),
            "losses": {term: value / steps for term, value in state.sums.items()},
            "validation_accuracy": accuracy,
            "validation_loss": loss,
        }
    )
    best = max(epoch["validation_accuracy"] for epoch in state.epochs)
    if config.select == "last" or accuracy >= best - task.standard_error(best, len(labels)):
        state.best_epoch = state.epoch
        state.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state.epoch, state.step, state.sums = state.epoch + 1, 0, {}


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    computing: Computing,
) -> None:
    generators = parallel.gathered(_generators(computing))
    if parallel.rank() > 0:
        return
    with atomic_path(path) as temporary:
        torch.save(
            {
                "state": vars(state),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generators": generators,
                "threads": torch.get_num_threads(),
                "computing": computing.model_dump(),
            },
            temporary,
        )


def _generators(computing: Computing) -> dict[str, Tensor]:
    """The states of the random generators that this process draws from."""
    states = {"cpu": torch.get_rng_state()}
    if computing.device != "cpu":
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _read(path: Path) -> dict[str, Any] | None:
    """The checkpoint, on the CPU, if there is one."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        Computing(**found["computing"])
    except Exception as error:
        raise StageError(
            f"this checkpoint cannot be read: {type(error).__name__}",
            where=str(path),
            fix="delete it to train from the beginning",
        ) from None
    if found["computing"]["device"] != "cpu" and not torch.cuda.is_available():
        raise StageError(
            "this training began on a GPU, and there is none here",
            where=str(path),
            fix="go on where there is one, or delete it to train from the beginning",
        )
    return found


def _restore(
    path: Path,
    found: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> State:
    try:
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    except (RuntimeError, ValueError):
        raise StageError(
            "this checkpoint is of another model or other losses",
            where=str(path),
            fix="delete it to train from the beginning",
        ) from None
    if len(found["generators"]) != parallel.count():
        raise StageError(
            f"this training began in {len(found['generators'])} processes, not {parallel.count()}",
            fix="go on with as many",
        )
    generators = found["generators"][parallel.rank()]
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])
    state = State(**found["state"])
    progress.say(f"  going on from epoch {state.epoch + 1}, step {state.step + 1}")
    if found["threads"] != torch.get_num_threads():
        progress.say(
            f"  note: {torch.get_num_threads()} threads now, {found['threads']} before; the "
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

    forget_alternate_stack()
    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    if told_to_end():
        stop.set()
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
