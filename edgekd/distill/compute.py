"""How a training step is computed: device, precision, layout, compiled, threads; chosen by measuring."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekd.config.schema import Compute
from edgekd.errors import UsageError
from edgekd.progress import Progress
from edgekd.results import Computing
from edgekd.tasks.kinds.classification import cross_entropy

# A batch → logits, and what passed each tap
Run = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
# A training shorter than this is not worth a measurement: it is computed as PyTorch does by itself.
WORTH_MEASURING = 120.0  # seconds
ROUNDS = 3
# What a change must win: less is noise, and noise should not decide what a training computes.
LAYOUT_GAIN, PRECISION_GAIN, THREADS_GAIN = 1.05, 1.2, 1.1
# Rounding may move a gradient by this share of what another batch would, or less.
ROUNDING = 0.5
SAME_ANSWERS = 1e-3  # nats


def place(module: nn.Module, how: Computing) -> None:
    """Bring weights to the device and the layout, in place."""
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    module.to(how.device)
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def laid_out(inputs: Tensor, how: Computing) -> Tensor:
    """A batch in the layout."""
    if how.channels_last and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def autocast(how: Computing) -> AbstractContextManager[object]:
    """Lower precision for what runs inside; nothing changes for f32."""
    kind = torch.device(how.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=how.precision == "bf16")


def compiled(function: Run, progress: Progress) -> Run:
    """The function through torch.compile; itself, and a note, where no compiler works."""
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.zeros(3))
    except Exception as error:
        progress.say(
            f"  note: torch.compile does not work here ({type(error).__name__}), so the step is not "
            "compiled; it needs a C++ compiler such as g++"
        )
        return function
    return torch.compile(function)


def choose(
    compute: Compute,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    steps: int,
    *,
    threads: bool = False,
) -> Computing:
    """The fastest way to train `model` for `steps` steps of batches like `inputs` (n, …).

    What the configuration fixes is not measured. `auto` measures copies (forward, cross-entropy,
    backward) in turns, after the plain way has shown that the training is long enough to care; with
    `threads` also whether fewer of them than PyTorch takes are faster, as where a container may use less
    than the machine has. Nothing that training depends on is touched. Raises UsageError for a device
    that is not there.
    """
    check_device(compute, "compute.device")
    device = "cuda" if torch.cuda.is_available() and compute.device != "cpu" else "cpu"
    images = inputs.ndim == 4
    layouts = [False, True] if compute.channels_last == "auto" else [compute.channels_last]
    precisions = ["f32", "bf16"] if compute.precision == "auto" else [compute.precision]
    plain = Computing(
        device=device,
        precision=precisions[0],
        channels_last=layouts[0] and images,
        compile=device != "cpu" if compute.compile == "auto" else compute.compile,
    )
    candidates = [
        plain.model_copy(update={"channels_last": layout, "precision": precision})
        for layout in (layouts if images else layouts[:1])
        for precision in precisions
    ]
    threads = threads and device == "cpu" and torch.get_num_threads() > 1
    if len(candidates) == 1 and not threads:
        return plain
    given = inputs.to(device), labels.to(device)
    return _fastest(plain, candidates, model, *given, steps, threads)


def _fastest(
    plain: Computing,
    candidates: list[Computing],
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    steps: int,
    threads: bool,
) -> Computing:
    cuda = [torch.device(plain.device)] if plain.device != "cpu" else []
    with torch.random.fork_rng(devices=cuda):
        first = _Trial(plain, model, inputs, labels)
        first.step()
        if min(first.step() for _ in range(2)) * steps < WORTH_MEASURING:
            return plain
        trials = [first]
        for candidate in candidates[1:]:
            trial = _Trial(candidate, model, inputs, labels)
            with contextlib.suppress(RuntimeError):  # an operator that does not know bf16
                trial.step()
                trials.append(trial)
        for _ in range(ROUNDS if candidates[1:] else 0):
            for trial in trials:
                trial.times.append(trial.step())
        best = _best(trials) if candidates[1:] else first
        milliseconds = {
            _key(trial.how): round(1000 * median(trial.times), 2) for trial in trials if trial.times
        }
        changes: dict[str, Any] = {}
        if threads:
            changes["threads"], times = _threads(best)
            milliseconds |= times
        return best.how.model_copy(update={**changes, "milliseconds": milliseconds})


def _threads(trial: _Trial) -> tuple[int, dict[str, float]]:
    """How many are fastest, halved as long as that wins; and the milliseconds of a step with each."""
    most = count = torch.get_num_threads()
    milliseconds: dict[str, float] = {}
    try:
        while count > 1:
            times: dict[int, list[float]] = {count: [], count // 2: []}
            for _ in range(ROUNDS):
                for number, found in times.items():
                    torch.set_num_threads(number)
                    trial.step()
                    found.append(trial.wall)
            milliseconds |= {
                f"{number} thread{'s' * (number > 1)}": round(1000 * median(found), 2)
                for number, found in times.items()
            }
            if median(times[count // 2]) * THREADS_GAIN > median(times[count]):
                break
            count //= 2
    finally:
        torch.set_num_threads(most)
    return count, milliseconds


def _best(trials: list[_Trial]) -> _Trial:
    """The fastest; but the first, which is exact, unless another wins clearly."""
    times = {_key(trial.how): median(trial.times) for trial in trials}
    reference, best = trials[0], trials[0]
    for trial in trials[1:]:
        gain = times[_key(best.how)] / times[_key(trial.how)]
        if trial.how.precision == best.how.precision:
            better = gain >= LAYOUT_GAIN
        else:
            better = gain >= PRECISION_GAIN and trial.agrees(reference)
        best = trial if better else best
    return best


def _key(how: Computing) -> str:
    return f"{how.precision}{' channels-last' if how.channels_last else ''}"


class _Trial:
    """One way to compute a step, tried on a copy of the model."""

    def __init__(self, how: Computing, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self.how, self.labels, self.times, self.wall = how, labels, list[float](), 0.0
        self.model = copy.deepcopy(model).train()
        place(self.model, how)
        self.inputs = laid_out(inputs, how)

    def step(self) -> float:
        """Seconds of one forward and backward pass, less those that other processes had the core."""
        self.model.zero_grad()
        started, used = time.perf_counter(), time.process_time()
        with autocast(self.how):
            logits = self.model(self.inputs)
        loss = cross_entropy(logits.float(), self.labels)
        check_gradient(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.how.device != "cpu":
            torch.cuda.synchronize()
        self.wall = time.perf_counter() - started
        if self.how.device != "cpu":
            return self.wall
        return min(self.wall, time.process_time() - used)

    def gradient(self, rows: slice = slice(None)) -> Tensor:
        """Of the rows of the batch, as one vector in float64."""
        self.model.zero_grad()
        with autocast(self.how):
            logits = self.model(self.inputs[rows])
        cross_entropy(logits.float(), self.labels[rows]).backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.cat([grad.flatten().double() for grad in grads])

    def agrees(self, exact: _Trial) -> bool:
        """Whether its rounding is small beside the noise that gradients of batches have anyway.

        Both halves of the batch differ by twice the standard error of the whole batch's gradient.
        """
        half = len(self.labels) // 2
        rounding = (self.gradient() - exact.gradient()).norm()
        noise = (exact.gradient(slice(half)) - exact.gradient(slice(half, 2 * half))).norm() / 2
        return bool(rounding <= ROUNDING * noise)  # false for NaN


def teacher_precision(
    asked: Literal["auto", "f32", "bf16"], logits: Callable[[Literal["f32", "bf16"]], Tensor]
) -> Literal["f32", "bf16"]:
    """In which precision a teacher answers; `logits` are its answers to one batch in either.

    Not timed: what the store holds must not depend on a measurement. `auto` takes bf16 where the
    processor computes in it and the mean KL divergence that it causes is below 0.001 nats.
    """
    if asked != "auto":
        return asked
    if not (torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()):
        return "f32"
    exact, rounded = logits("f32").double(), logits("bf16").double()
    log_p, log_q = exact.log_softmax(1), rounded.log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean().item()
    return "bf16" if divergence < SAME_ANSWERS else "f32"  # f32 for NaN


def check_device(compute: Compute, where: str) -> None:
    """Raises UsageError, whose place is the key `where`, for a device that is not there."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here", where=where, fix="use auto or cpu")


def check_gradient(values: Tensor, where: str | None = None) -> None:
    """Raises UsageError, whose place is the key `where`, for what nothing can be learned from."""
    if not values.requires_grad:
        raise UsageError(
            "the network's outputs have no gradient, so that it cannot be trained",
            where=where,
            fix="look for detach(), no_grad() or numpy() in its forward, or weights that are frozen",
        )
