"""The assembly line: teacher ► distill ► export ► quantize ► verify ► profile ► gate ► report."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifacts import sha256_file
from edgekd.config.schema import Config, Model, Training, Weighted
from edgekd.errors import UsageError
from edgekd.models.pruned import PRUNED
from edgekd.pipeline.run import Run
from edgekd.progress import Progress

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset


@dataclass
class Context:
    """What a stage's work function gets: the configuration, earlier artifacts, and where to write.

    `base` is the folder that relative paths of the configuration start at; `folder` is the
    stage's own, empty unless an earlier attempt with the same key was cut short.
    """

    config: Config
    base: Path
    run: Run
    folder: Path
    progress: Progress

    @cached_property
    def dataset(self) -> Dataset:
        """The data with its splits."""
        from edgekd.data.resolve import load

        return load(self.config.data, self.config.data.seed, self.base)


@dataclass(frozen=True)
class Stage:
    """One step of the line.

    `part` picks what of the configuration (and of the files it names) the result depends on;
    `needs` are run-relative patterns of the earlier artifacts it reads; `tools` are packages
    whose version changes the result. `folder` is where its artifacts go ("" is the run folder).
    Raise `version` when the work function changes its output.
    """

    name: str
    version: int
    part: Callable[[Config, Path], Any]
    needs: tuple[str, ...]
    folder: str
    tools: tuple[str, ...] = ()
    shareable: bool = False

    @property
    def work(self) -> Callable[[Context], None]:
        """The function that does it: `edgekd.<room>.stage:run`, imported only when it must run."""
        work: Callable[[Context], None] = importlib.import_module(
            f"edgekd.{_ROOMS[self.name]}.stage"
        ).run
        return work

    def inputs(self, config: Config, base: Path, artifacts: dict[str, str]) -> dict[str, Any]:
        """Everything that the stage's key is the hash of; `artifacts` maps path to SHA-256."""
        return {
            "stage": self.name,
            "version": self.version,
            "part": self.part(config, base),
            "tools": {tool: importlib.metadata.version(tool) for tool in self.tools},
            "artifacts": self.needed(artifacts),
        }

    def needed(self, artifacts: dict[str, str]) -> dict[str, str]:
        """Those of `artifacts` (path to SHA-256) that it reads."""
        return {
            path: digest
            for path, digest in sorted(artifacts.items())
            if any(Path(path).match(pattern) for pattern in self.needs)
        }


def data_part(config: Config, base: Path) -> dict[str, Any]:
    """What every look at the data depends on: content, splits, views, seed."""
    from edgekd.data.resolve import fingerprint

    part = config.data.model_dump(mode="json", exclude={"source"})
    return {"run_seed": config.seed, **part, "content": fingerprint(config.data, base)}


def training_part(training: Training) -> dict[str, Any]:
    """What of a training's configuration its result depends on."""
    # How often it is saved and with how many threads does not change what is learned.
    return training.model_dump(mode="json", exclude={"checkpoint_every", "threads", "doctor"})


def network_part(part: Model, base: Path, where: str) -> dict[str, Any]:
    """What an untrained network depends on: its arguments and its source."""
    from edgekd.models.resolve import fingerprint

    source = fingerprint(part.model, base, where=f"{where}.model", args=part.args)
    # Where a file lies does not change what is in it.
    args = {key: value for key, value in part.args.items() if (part.model, key) != _START}
    return {"model": part.model, "args": args, "source": source}


def _teacher(config: Config, base: Path) -> dict[str, Any]:
    from edgekd.teachers.teacher import kind_of

    kind = kind_of(config.teacher.model)
    # First: the data may be read by its tokenizer.
    identity = kind.identity(config, base)
    return {"data": data_part(config, base), "kind": kind.kind, **identity}


def weights_path(teacher: Weighted, base: Path, where: str = "teacher.weights") -> Path:
    """The file its `weights` names. Raises UsageError when there is none."""
    path = base / (teacher.weights or "")
    if not path.is_file():
        raise UsageError(
            f"is a folder: {path}" if path.is_dir() else f"no such file: {path}",
            where=where,
            fix="give a .safetensors file or a weights-only checkpoint, or null to train it here",
        )
    return path


def unlabelled_part(config: Config, base: Path) -> str | None:
    """The content of the samples without labels, if there are any."""
    from edgekd.data.resolve import unlabelled_fingerprint

    source = config.distill.transfer.unlabelled
    return None if source is None else unlabelled_fingerprint(source, config.data, base)


def _distill(config: Config, base: Path) -> dict[str, Any]:
    from edgekd.teachers.teacher import TORCH, kind_of

    scheme = config.distill.scheme.entry
    if scheme.needs_network(config.teacher) and kind_of(config.teacher.model).kind != TORCH:
        raise UsageError(
            f"scheme {scheme.name} trains networks like the teacher, and {config.teacher.model} is none "
            "that can be trained here",
            where="distill.scheme",
            fix="give a teacher of zoo:NAME or package.module:factory, or another scheme",
        )
    networks = [
        {
            **network_part(network, base, f"distill.scheme.{scheme.name}.{key}"),
            "weights": sha256_file(
                weights_path(network, base, f"distill.scheme.{scheme.name}.{key}.weights")
            )
            if isinstance(network, Weighted) and network.weights
            else None,
        }
        for key, network in scheme.networks().items()
    ]
    return {
        "data": data_part(config, base),
        "network": network_part(config.student, base, "student"),
        "start": config.student.start and config.student.start.model_dump(mode="json"),
        "distill": training_part(config.distill),
        "networks": networks,
        "unlabelled": unlabelled_part(config, base),
        "teachers": training_part(config.teacher.train) if scheme.trains_teachers else None,
    }


def _export(config: Config, base: Path) -> dict[str, Any]:
    return config.export.model_dump(mode="json")


def _quantize(config: Config, base: Path) -> dict[str, Any] | None:
    from edgekd.profile.targets import find
    from edgekd.quantize.arithmetic import arithmetic
    from edgekd.quantize.recipes import RECIPES

    if config.quantize is None:
        return None
    recipe = RECIPES.find(config.quantize.recipe, base)
    targets = [find(name, base) for name in config.profile.targets]
    # Where speed decides, the files are for those targets, and this machine.
    measured = config.quantize.speed_aware or recipe.backend == "auto"
    return {
        "quantize": config.quantize.model_dump(mode="json", exclude={"qat"}),
        "qat": config.quantize.qat
        and {"train": training_part(config.quantize.qat), "distill": training_part(config.distill)},
        "recipe": recipe.model_dump(mode="json"),
        "types": arithmetic(recipe, targets).model_dump(mode="json", exclude={"cpus"}),
        "targets": [target.model_dump(mode="json") for target in targets] if measured else None,
        "machine": [platform.node(), platform.machine()] if measured else None,
        "data": data_part(config, base),
        "onnxruntime": _installed("onnxruntime"),
        "nncf": _installed("nncf"),
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _verify(config: Config, base: Path) -> dict[str, Any]:
    from edgekd.verify.precisions import lower_precisions

    part = {"verify": config.verify.model_dump(mode="json"), "data": data_part(config, base)}
    return part | {"precisions": lower_precisions(config, base)}


def _profile(config: Config, base: Path) -> dict[str, Any]:
    from edgekd.profile.targets import find

    found = [find(name, base) for name in config.profile.targets]
    targets = [target.model_dump(mode="json") for target in found]
    for target, part in zip(found, targets, strict=True):
        if target.predicted:
            from edgekd.profile.predict.forecast import cost_model_path

            part["cost_model"] = sha256_file(cost_model_path(target, base))
    # Numbers of one machine say nothing about another that the folder was copied to. Another
    # device is known by its descriptor; it may be off when the key is made.
    here = any(target.transport == "local" for target in found)
    return {
        "profile": config.profile.model_dump(mode="json"),
        "targets": targets,
        "machine": [platform.node(), platform.machine(), platform.release()] if here else None,
        "data": data_part(config, base),
    }


def _gate(config: Config, base: Path) -> dict[str, Any]:
    part = config.gate.model_dump(mode="json")
    if config.gate.metrics is not None:
        from edgekd.models.resolve import fingerprint

        part["metrics_source"] = fingerprint(config.gate.metrics, base, where="gate.metrics")
    if config.gate.baseline is not None:
        part["baseline"] = _baseline(config, base)
    return part


def _baseline(config: Config, base: Path) -> dict[str, str]:
    """What the baseline holds, wherever it lies."""
    from edgekd.export.parts import model_parts
    from edgekd.gate.stage import baseline_path

    path = baseline_path(config.gate, base)
    if path.is_file():
        return {part.name: sha256_file(part) for part in model_parts(path)}
    manifest = Run.open(path).manifest
    names = (
        name
        for stage in ("export", "quantize", "verify", "profile")
        if stage in manifest.stages
        for name in manifest.stages[stage].artifacts
    )
    # What is there now, whatever the manifest says of it.
    return {name: sha256_file(path / name) for name in names if (path / name).is_file()}


def _report(config: Config, base: Path) -> dict[str, Any]:
    return config.model_dump(mode="json")


# The weights that a pruned network starts from; their content is in the fingerprint.
_START = (PRUNED, "start")
# What a teacher of any kind is opened from, and a student.
_TEACHER = ("teacher/model.*", "teacher/answers.npz")
_MODELS = (*_TEACHER, "student/model.*")
_FILES = ("export/*", "quantized/*")
_ROOMS = {
    "teacher": "teachers",
    "distill": "distill",
    "export": "export",
    "quantize": "quantize",
    "verify": "verify",
    "profile": "profile",
    "gate": "gate",
    "report": "report",
}
_RUNTIMES = ("onnxruntime", "openvino", "numpy")

LINE: tuple[Stage, ...] = (
    Stage("teacher", 3, _teacher, (), "teacher", shareable=True),
    Stage(
        "distill",
        4,
        _distill,
        _TEACHER,
        "student",
        shareable=True,
    ),
    Stage(
        "export",
        5,
        _export,
        _MODELS,
        "export",
        tools=("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino"),
        shareable=True,
    ),
    Stage("quantize", 5, _quantize, (*_MODELS, "export/*"), "quantized", shareable=True),
    Stage(
        "verify",
        6,
        _verify,
        (*_MODELS, *_FILES),
        "verify",
        tools=_RUNTIMES,
        shareable=True,
    ),
    Stage("profile", 5, _profile, (*_FILES, "bundles/*.result.json"), "profile", tools=_RUNTIMES),
    Stage("gate", 5, _gate, ("student/model.json", "verify/*", "profile/profile.json"), "gate"),
    Stage("report", 8, _report, ("*/*",), ""),
)

NAMES: tuple[str, ...] = tuple(stage.name for stage in LINE)
