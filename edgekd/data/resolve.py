"""From `data.source` in the configuration to samples with splits, ready to be fed to a model."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.source import SOURCES, Samples, Source, content_hash
from edgekd.data.tokenizer import located, tokenizer_file
from edgekd.errors import UsageError
from edgekd.results import InputSpec, OutputScale

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from edgekd.data.splits import Splits


# For tasks without classes.
_FEWEST = 20
_UNLABELLED = "distill.transfer.unlabelled"


@dataclass(frozen=True)
class Dataset:
    """Samples and their splits. `train`, `validation`, `test` are sorted, disjoint indices (int64).

    `inputs` holds raw values (n, …), `labels` (n,) int64 into `classes`; `input` says how raw
    values become what a model eats. With another `task` (`tasks/task.py`) labels and classes are that
    task's; `output` has mean and deviation of labels that are numbers, over the training split.
    `ids` are the samples' names, where the source has some;
    `texts` what token ids were made of, `tokenizer` how (the text of a tokenizer.json); `front_end` how
    features were made of sound (the text of a logmel.json).
    """

    inputs: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    input: InputSpec
    ids: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    tokenizer: str | None = None
    task: str = "classification"
    output: OutputScale | None = None
    front_end: str | None = None

    @property
    def strata(self) -> np.ndarray:
        """(n,) int64: what a part of the samples should have the same shares of."""
        from edgekd.tasks.task import of

        return of(self.task).strata(self.labels)

    def tensor(self, indices: np.ndarray | Tensor) -> Tensor:
        """The samples, unaugmented, as normalised float32 (len(indices), *input.shape); ids as int64."""
        import numpy as np

        return self.normalise(self.inputs[np.asarray(indices)])

    def normalise(self, raw: np.ndarray) -> Tensor:
        """(raw / scale − mean) / std of a batch, per channel or feature, as float32; ids as int64."""
        import torch

        if self.input.tokens is not None:
            return torch.from_numpy(raw).to(torch.int64)
        gain, offset = self.gain_and_offset("cpu")
        return torch.from_numpy(raw).to(torch.float32).mul(gain).add_(offset)

    def gain_and_offset(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """What raw values are multiplied with, and what is added then, to normalise them."""
        import numpy as np
        import torch

        mean, std = np.array(self.input.mean), np.array(self.input.std)
        shape = (1, -1) + (1,) * (self.inputs.ndim - 2)
        gain = torch.from_numpy((1 / (self.input.scale * std)).astype(np.float32).reshape(shape))
        offset = torch.from_numpy((-mean / std).astype(np.float32).reshape(shape))
        return gain.to(device), offset.to(device)


def fingerprint(config: Data, base: Path) -> str:
    """What `load` depends on besides the configuration: the content behind `data.source`.

    Raises UsageError for an unknown kind or a missing path. Imports no numpy.
    """
    kind, source, location = _open(config, base)
    content = f"{kind} {source.fingerprint(location)}"
    if config.text.tokenizer is None:
        return content
    return f"{content} {content_hash(tokenizer_file(config.text.tokenizer, base))}"


def load(config: Data, seed: int, base: Path) -> Dataset:
    """Read the source, split it and find the normalisation from the training split.

    `seed` is that of the splits; relative paths start at `base`.
    Raises UsageError for anything in the data that cannot be used.
    """
    from edgekd.data.splits import split
    from edgekd.tasks.task import CLASSIFICATION, of

    _, source, location = _open(config, base)
    samples = source.load(location, located(config, base))
    _check(samples, config)
    strata = of(samples.task).strata(samples.labels)
    if samples.task != CLASSIFICATION and len(strata) < _FEWEST:
        raise UsageError(
            f"has {len(strata)} samples; at least {_FEWEST} are needed to train, select and test",
            where=f"data.source {config.source}",
        )
    names = samples.classes if samples.task == CLASSIFICATION else ("all",)
    splits = split(strata, names, samples.test, config, seed)
    return Dataset(
        inputs=samples.inputs,
        labels=samples.labels,
        classes=samples.classes,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        input=_input_spec(samples, splits.train, config),
        ids=samples.ids,
        texts=samples.texts,
        tokenizer=samples.tokenizer,
        task=samples.task,
        output=_output_scale(samples, splits, config),
        front_end=samples.front_end,
    )


def unlabelled_inputs(text: str, config: Data, base: Path, *, like: Dataset) -> np.ndarray:
    """The raw inputs (m, …) of every sample of another source, of the form of `like`'s.

    Labels are read only by kinds of sources that cannot do without. Raises UsageError, as for samples of
    another shape or kind of value.
    """
    import numpy as np

    place = f"{_UNLABELLED} {text}"
    other = config.model_copy(update={"source": text})
    with _of_unlabelled(text):
        _, source, location = _open(other, base)
        read: Callable[[Path | None, Data], Samples] = getattr(source, "unlabelled", source.load)
        samples = read(location, located(other, base))
    found, expected = samples.inputs, like.inputs
    if not len(found):
        raise UsageError("has no samples", where=place)
    if (found.shape[1:], found.dtype, samples.scale) != (
        expected.shape[1:],
        expected.dtype,
        like.input.scale,
    ):
        raise UsageError(
            f"has {found.dtype} samples of shape {found.shape[1:]}, scale {samples.scale:g}; the data "
            f"has {expected.dtype} of {expected.shape[1:]}, scale {like.input.scale:g}",
            where=place,
        )
    if samples.front_end != like.front_end:
        raise UsageError("is of another sampling rate than the data", where=place)
    if found.dtype != np.uint8 and not np.isfinite(found).all():
        raise UsageError("has values that are not finite float32 numbers", where=place)
    return found


def unlabelled_fingerprint(text: str, config: Data, base: Path) -> str:
    """What `unlabelled_inputs` depends on."""
    with _of_unlabelled(text):
        return fingerprint(config.model_copy(update={"source": text}), base)


@contextlib.contextmanager
def _of_unlabelled(text: str) -> Iterator[None]:
    """Errors name the key that the source is given by, which is not `data.source`."""
    try:
        yield
    except UsageError as error:
        where = f"{_UNLABELLED} {text}"
        if error.where not in (None, "data.source"):
            where = f"{error.where} ({_UNLABELLED})"
        raise UsageError(error.what, where=where, fix=error.fix) from None


def _open(config: Data, base: Path) -> tuple[str, Source, Path | None]:
    kind, separator, text = config.source.partition(":")
    try:
        source = SOURCES.get(kind)()
    except UsageError as error:
        raise UsageError(error.what, where="data.source") from None
    location = base / Path(_expand(text)).expanduser() if separator and text else None
    return kind, source, location


def _expand(text: str) -> str:
    """Replace $NAME and ${NAME}. Raises UsageError for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UsageError(f"the environment variable {name} is not set", where="data.source")
        return os.environ[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)


def _output_scale(samples: Samples, splits: Splits, config: Data) -> OutputScale | None:
    """Raises UsageError for a number that is the same in all samples of a split.

    There is nothing to learn then, or no variance that could be explained.
    """
    import numpy as np

    if samples.labels.dtype.kind != "f":
        return None
    known = samples.labels[splits.train].astype(np.float64)
    mean, std = known.mean(axis=0), known.std(axis=0)
    for name, deviation, middle in zip(samples.classes, std, mean, strict=True):
        if deviation <= 1e-9 * abs(middle):
            raise UsageError(
                f"{name} is {middle:g} in all training samples: there is nothing to learn",
                where=f"data.source {config.source}",
            )
    for split, rows in (("validation", splits.validation), ("test", splits.test)):
        for name, values in zip(samples.classes, samples.labels[rows].T, strict=True):
            if (values == values[0]).all():
                raise UsageError(
                    f"{name} is {values[0]:g} in all {len(values)} samples of the {split} split, which says "
                    "nothing of how well it is predicted",
                    where=f"data.source {config.source}",
                    fix=f"give more samples, or a larger data.{split}",
                )
    return OutputScale(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _check(samples: Samples, config: Data) -> None:
    import numpy as np

    wanted = config.task
    if wanted is not None and wanted != samples.task.partition(":")[0]:
        raise UsageError(
            f"its labels are for {samples.task.partition(':')[0]}, not for {wanted}",
            where=f"data.source {config.source}",
            fix=f"leave data.task out, or give labels for {wanted} (see docs/regression.md and "
            "docs/segmentation.md)",
        )
    if samples.labels.dtype.kind == "f" and not np.isfinite(samples.labels).all():
        raise UsageError(
            f"sample {int(np.argmin(np.isfinite(samples.labels).all(axis=1)))} has a label that is no "
            "finite number",
            where=f"data.source {config.source}",
        )
    if len(samples.classes) < 2 and samples.labels.dtype.kind != "f":
        raise UsageError(
            f"has {len(samples.classes)} class; at least 2 are needed",
            where=f"data.source {config.source}",
        )
    if 0 in samples.inputs.shape:
        raise UsageError(
            f"samples have the shape {samples.inputs.shape[1:]}: nothing is in them",
            where=f"data.source {config.source}",
        )
    if samples.inputs.dtype != np.uint8:
        finite = np.isfinite(samples.inputs).reshape(len(samples.inputs), -1).all(1)
        if not finite.all():
            raise UsageError(
                f"sample {int(np.argmin(finite))} has a value that is not a finite float32 number "
                f"({int((~finite).sum())} samples do)",
                where=f"data.source {config.source}",
            )


def _input_spec(samples: Samples, train: np.ndarray, config: Data) -> InputSpec:
    import numpy as np

    shape = samples.inputs.shape[1:]
    if samples.tokens is not None:
        if config.mean is not None:
            raise UsageError("is of values; token ids are not normalised", where="data.mean")
        return InputSpec(shape=shape, scale=1.0, mean=(), std=(), tokens=samples.tokens)
    if config.mean is not None and config.std is not None:
        if len(config.mean) != shape[0]:
            raise UsageError(
                f"has {len(config.mean)} values for inputs of {shape[0]} channels",
                where="data.mean",
            )
        return InputSpec(
            shape=shape, scale=samples.scale, mean=tuple(config.mean), std=tuple(config.std)
        )
    axes = (0, *range(2, samples.inputs.ndim))
    count, total, squares = 0.0, np.zeros(shape[0]), np.zeros(shape[0])
    # Two passes in pieces: all samples as float64 may not fit in memory, and one pass cancels.
    pieces = np.array_split(train, max(1, len(train) // 4096))
    for piece in pieces:
        values = samples.inputs[piece].astype(np.float64) / samples.scale
        total += values.sum(axis=axes)
        count += values.size / shape[0]
    mean = total / count
    centre = mean.reshape((1, -1) + (1,) * (len(shape) - 1))
    for piece in pieces:
        values = samples.inputs[piece].astype(np.float64) / samples.scale
        squares += ((values - centre) ** 2).sum(axis=axes)
    std = np.sqrt(squares / count)
    # A channel that never changes carries nothing: leave its scale alone.
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    return InputSpec(
        shape=shape, scale=samples.scale, mean=tuple(mean.tolist()), std=tuple(std.tolist())
    )
