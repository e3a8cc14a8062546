"""What `edgekd bench` measures: the files of a run as its profile stage would, or bare model files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from edgekd.config.schema import Profile
from edgekd.errors import UsageError
from edgekd.export.parts import FORMATS, model_parts
from edgekd.profile.targets import Browser, Target
from edgekd.results import ExportedFile, Role


@dataclass(frozen=True)
class Subject:
    """Files below `root`, inputs (n, …) float32 for them, and how they are measured.

    `base` is the folder in which a project's own targets are looked for.
    """

    files: tuple[ExportedFile, ...]
    root: Path
    inputs: np.ndarray
    settings: Profile
    base: Path


def subject(paths: tuple[Path, ...], max_seconds: float | None) -> Subject:
    """A run folder, a student's model file, or a teacher's and a student's.

    `max_seconds` replaces that of the run's configuration. Raises UsageError.
    """
    of = _of_run(paths[0]) if len(paths) == 1 and paths[0].is_dir() else _of_files(paths)
    changes = of.settings.model_dump() | {"operators": False}
    if max_seconds is not None:
        changes["max_seconds"] = max_seconds
        changes["min_seconds"] = min(of.settings.min_seconds, max_seconds)
    return Subject(of.files, of.root, of.inputs, Profile(**changes), of.base)


def with_page(target: Target, given: dict[str, object]) -> Target:
    """The target with these settings of its page. Raises UsageError where there is none."""
    if not given:
        return target
    if target.transport != "browser":
        raise UsageError(
            f"is for targets with transport: browser, not {target.transport}",
            where=", ".join(f"--{name}" for name in given),
        )
    try:
        page = Browser(**{**(target.browser or Browser()).model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--{first['loc'][0]}" if first["loc"] else "--certificate, --key"
        raise UsageError(first["msg"].removeprefix("Value error, "), where=where) from None
    return target.model_copy(update={"browser": page})


def _of_run(path: Path) -> Subject:
    from edgekd.data.resolve import load
    from edgekd.pipeline.line import config_of
    from edgekd.pipeline.run import Run

    run = Run.open(path)
    config, base = config_of(run)
    dataset = load(config.data, config.data.seed, base)
    settings = config.profile
    most = max(settings.batch_size, settings.throughput_batch_size)
    inputs = dataset.tensor(dataset.test[:most]).numpy()
    return Subject(run.files, run.path, inputs, settings, base)


def _of_files(paths: tuple[Path, ...]) -> Subject:
    if len(paths) > 2:
        raise UsageError("give a run folder, or a student's file, or a teacher's and a student's")
    roles: tuple[Role, ...] = ("teacher", "student")
    shapes = {path: _input_shape(path) for path in paths}
    batch, shape = shapes[paths[-1]]
    if any(other != shape for _, other in shapes.values()):
        raise UsageError(
            "take inputs of different shapes", where=", ".join(str(path) for path in paths)
        )
    settings = Profile()
    if batch is not None:
        # Exported for one batch size only.
        settings = settings.model_copy(update={"batch_size": batch, "throughput_batch_size": batch})
    count = max(settings.batch_size, settings.throughput_batch_size)
    inputs = np.random.default_rng(0).standard_normal((count, *shape), np.float32)
    files = tuple(_file(path, role) for path, role in zip(paths, roles[-len(paths) :], strict=True))
    return Subject(files, Path.cwd(), inputs, settings, Path.cwd())


def _file(path: Path, role: Role) -> ExportedFile:
    parts = model_parts(path)
    return ExportedFile(
        role=role,
        format=FORMATS[path.suffix],
        path=str(path.resolve()),
        files=tuple(str(part.resolve()) for part in parts),
        size=sum(part.stat().st_size for part in parts),
        seconds=0.0,
    )


def _input_shape(path: Path) -> tuple[int | None, tuple[int, ...]]:
    """Of the only input: the batch size, None where it is free, and the shape of one sample."""
    import openvino

    model_parts(path)
    try:
        inputs = openvino.Core().read_model(path).inputs
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise UsageError(f"cannot be read: {reason}", where=str(path)) from None
    if len(inputs) != 1 or inputs[0].element_type.to_string() not in ("f32", "f16"):
        raise UsageError("should take one input, of floating-point numbers", where=str(path))
    shape = inputs[0].partial_shape
    if shape.rank.is_dynamic or not list(shape) or any(size.is_dynamic for size in list(shape)[1:]):
        raise UsageError(
            f"takes inputs of shape {shape}: only the batch may be free", where=str(path)
        )
    batch, *sizes = shape
    return (
        None if batch.is_dynamic else batch.get_length(),
        tuple(size.get_length() for size in sizes),
    )
