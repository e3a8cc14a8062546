"""The candidates: scaled members of known families, and the teacher without some of its channels."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.artifacts import sha256_json
from edgekd.config.schema import Config
from edgekd.data.resolve import Dataset
from edgekd.errors import StageError, UsageError
from edgekd.models import role
from edgekd.models.prune import loses_heads, prune, require
from edgekd.models.pruned import PRUNED, sizes
from edgekd.models.shrink import Spec, smaller
from edgekd.models.weights import save_weights
from edgekd.pipeline.run import Run
from edgekd.progress import Progress
from edgekd.search.records import Candidate

# Importance is estimated on so many batches of so many training samples.
_BATCHES, _BATCH = 8, 64
_TRACED = 4


def candidates(
    config: Config, base: Path, run: Run, dataset: Dataset, progress: Progress
) -> tuple[list[Candidate], list[str]]:
    """At most `search.candidates` networks smaller than the run's teacher, the largest first, and notes.

    Pruned ones leave their weights in `students/` of the run. Raises UsageError when there are none.
    """
    teacher = role.load(run, "teacher", base)
    whole = sum(p.numel() for p in teacher.parameters())
    notes: list[str] = []
    cut = _pruned(config, base, run, dataset, teacher, progress, notes)
    scaled = smaller(
        config.teacher.model,
        config.teacher.args,
        input_shape=dataset.input.shape,
        classes=len(dataset.classes),
        parameters=whole,
    )
    room = max(1, config.search.candidates - len(cut))
    found = [*cut[: config.search.candidates], *map(_candidate, evenly(scaled, room))]
    found = found[: config.search.candidates]
    if not found:
        raise UsageError(
            f"there is no network smaller than the teacher ({whole:,} parameters) to try"
            + "".join(f"; {note}" for note in notes),
            where="student.model",
            fix="name a student: zoo:NAME (`edgekd zoo` lists them) or a factory of yours",
        )
    return sorted(found, key=lambda candidate: -candidate.parameters), notes


def evenly(specs: list[Spec], count: int) -> list[Spec]:
    """So many of them, evenly over the logarithm of their parameters, the largest and smallest too."""
    if len(specs) <= count:
        return specs
    logs = np.log([spec.parameters for spec in specs])
    chosen: list[int] = []
    for mark in np.linspace(logs.max(), logs.min(), count):
        free = [i for i in range(len(specs)) if i not in chosen]
        chosen.append(min(free, key=lambda i: abs(logs[i] - mark)))
    return [specs[i] for i in sorted(chosen)]


def _candidate(spec: Spec) -> Candidate:
    plain = spec.model.partition(":")[2]
    name = plain if spec.origin == "as it is" else f"{plain} {spec.origin}"
    return Candidate(
        name=name,
        model=spec.model,
        args=spec.args,
        family=spec.family,
        parameters=spec.parameters,
    )


def _pruned(
    config: Config,
    base: Path,
    run: Run,
    dataset: Dataset,
    teacher: nn.Module,
    progress: Progress,
    notes: list[str],
) -> list[Candidate]:
    """The teacher without each of the shares `search.prune`; known ones are not pruned again.

    Where attention has heads enough, each share twice: of their dimensions, and of whole heads.
    """
    if not config.search.prune:
        return []
    require()
    identity = {
        "teacher": {n: a.sha256 for n, a in run.manifest.stages["teacher"].artifacts.items()},
        "version": importlib.metadata.version("torch-pruning"),
        "seed": config.seed,
    }
    ways = [
        (ratio, whole_heads)
        for ratio in sorted(config.search.prune)
        for whole_heads in (False, True)
        if not whole_heads or loses_heads(teacher, ratio)
    ]
    found: dict[str, Candidate] = {}
    for ratio, whole_heads in ways:
        way = {"ratio": ratio, "whole_heads": True} if whole_heads else {"ratio": ratio}
        name = sha256_json({**identity, **way})[:16]
        said = ", whole heads" if whole_heads else ""
        folder = run.path / "students"
        if not (folder / f"{name}.json").is_file():
            try:
                pruned = _cut(teacher, dataset, ratio, whole_heads)
            except StageError as error:
                notes.append(f"pruning {ratio:.0%} of the teacher{said}: {error.what}")
                progress.warn(notes[-1])
                continue
            save_weights(pruned, folder / f"{name}.safetensors")
            Candidate(
                name=f"teacher pruned by {ratio * 100:g} %{said}",
                model=PRUNED,
                args={
                    "network": config.teacher.model,
                    "args": config.teacher.args,
                    "sizes": sizes(teacher, pruned),
                },
                family=PRUNED,
                parameters=sum(p.numel() for p in pruned.parameters()),
            ).write(folder / f"{name}.json")
        known = Candidate.read(folder / f"{name}.json")
        start = relative(folder / f"{name}.safetensors", base)
        # Rounded to whole vectors, two shares may be one.
        found.setdefault(
            sha256_json(known.args["sizes"]),
            known.model_copy(update={"args": {**known.args, "start": start}}),
        )
    return list(found.values())


def _cut(teacher: nn.Module, dataset: Dataset, ratio: float, whole_heads: bool) -> nn.Module:
    order = np.random.default_rng(0).permutation(dataset.train)[: _BATCHES * _BATCH]
    batches = [
        (dataset.tensor(part), torch.from_numpy(dataset.labels[part]))
        for part in np.array_split(order, max(1, len(order) // _BATCH))
    ]
    example = dataset.tensor(np.resize(dataset.train, _TRACED))
    return prune(teacher, example, batches, ratio, whole_heads=whole_heads)


def relative(path: Path, base: Path) -> str:
    """A path as a configuration beside `base` would write it."""
    path, base = path.resolve(), base.resolve()
    return os.path.relpath(path, base) if path.is_relative_to(base) else str(path)
