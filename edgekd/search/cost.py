"""What candidates cost on the budgeted targets, before any training: measured, or predicted with its error.

An untrained network takes as long as a trained one. What was measured is kept beside the runs, by content.
"""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import edgekd
from edgekd.artifacts import sha256_file, sha256_json
from edgekd.config.schema import Config, Model, Profile
from edgekd.data.resolve import Dataset
from edgekd.errors import StageError, UsageError
from edgekd.export.exporter import EXPORTERS, Exported, Source
from edgekd.models import role
from edgekd.pipeline.stages import network_part
from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.measure import profile
from edgekd.profile.predict.forecast import cost_model_path, forecast
from edgekd.profile.predict.records import Calibration
from edgekd.profile.targets import Target, find
from edgekd.profile.transport import TRANSPORTS, Describes, by_hand, formats
from edgekd.progress import Silent
from edgekd.registry import suggestion
from edgekd.results import ExportedFile, Measurement, ModelCard, ProfileReport, Variant
from edgekd.search.records import Cost, Costs

FOLDER = ".costs"  # beside the runs
# Metrics that an untrained file has already; those that compare come from both models' figures.
ON_COST = (
    "latency_p50", "latency_p90", "latency_p95", "latency_p99", "throughput", "memory", "size", "energy",
    "speedup", "memory_ratio", "compression",
)  # fmt: skip
_SAMPLES = 8
_CALIBRATION = 16
# Weights that a pruned network starts from change nothing of what it costs.
_VERSION = 1


class Coster:
    """Costs networks on the targets of `profile.targets`, for one configuration."""

    def __init__(self, config: Config, base: Path, root: Path, dataset: Dataset) -> None:
        self.config, self.base, self.dataset = config, base, dataset
        self.folder = root / FOLDER
        self.targets = places(config, base)
        opened = {f for t in self.targets for r in t.runtimes for f in formats(t.transport)[r]}
        self.formats = [format for format in config.export.formats if format in opened]
        self.quantized = quantized_variant(config, base)

    def known(self, network: Model, where: str = "student") -> Costs | None:
        """What was found before on targets that all were attached, if it was."""
        return Costs.read_if_whole(self._path(network, where, ()))

    @cached_property
    def away(self) -> tuple[str, ...]:
        """Targets that cost models have to speak for."""
        return out_of_reach(self.targets, self.base)

    def costs(self, network: Model, where: str = "student") -> Costs:
        """Figures of the network's files in every runtime on every target that opens them.

        Where it cannot be exported or measured there are none, and the reason; that is not kept, for
        next time the device may be there. Where only its quantized files fail, there are the others.
        """
        known = self.known(network, where)
        if known is not None:
            return known
        path = self._path(network, where, self.away)
        if (known := Costs.read_if_whole(path)) is not None:
            return known
        module = role.build(
            network, "student", self.dataset, seed=self.config.seed, base=self.base
        ).eval()
        reason = None
        for quantized in dict.fromkeys((self.quantized, None)):
            try:
                found = self._found(module, network, quantized)
            except StageError as error:
                reason = reason or error.what
                continue
            if reason is None:
                found.write(path)
            return found.model_copy(update={"failed": reason})
        return Costs(figures=(), failed=reason)

    def _found(self, module: nn.Module, network: Model, quantized: Variant | None) -> Costs:
        with tempfile.TemporaryDirectory(prefix="edgekd-cost-") as name:
            files = tuple(self._files(module, network, Path(name), quantized))
            return Costs(figures=tuple(self._figures(files, Path(name))))

    def _path(self, network: Model, where: str, away: tuple[str, ...]) -> Path:
        key = self._key(network, where, away)
        return self.folder / f"{sha256_json(key)}.json"

    def _key(self, network: Model, where: str, away: tuple[str, ...]) -> dict[str, Any]:
        part = network_part(network, self.base, where)
        part["source"] = part["source"].partition(" ")[0]
        here = any(target.transport == "local" for target in self.targets)
        tools = ("torch", "onnx", "onnxslim", "onnxruntime", "openvino")
        recipe = None
        if self.config.quantize is not None:
            from edgekd.quantize.recipes import RECIPES

            found = RECIPES.find(self.config.quantize.recipe, self.base)
            recipe = found.model_dump(mode="json")
        return {
            "version": _VERSION,
            "edgekd": edgekd.__version__,
            "network": part,
            "input": list(self.dataset.input.shape),
            "classes": len(self.dataset.classes),
            "formats": sorted(self.formats),
            "opset": self.config.export.opset,
            "settings": self._settings.model_dump(mode="json", exclude={"targets"}),
            "targets": [self._target(target, away) for target in self.targets],
            "machine": [platform.node(), platform.machine()] if here else None,
            "tools": {tool: importlib.metadata.version(tool) for tool in tools},
            "recipe": recipe,
        }

    def _target(self, target: Target, away: tuple[str, ...]) -> dict[str, Any]:
        part = target.model_dump(mode="json")
        if target.predicted or target.name in away:
            part["cost_model"] = sha256_file(cost_model_path(target, self.base))
        return part

    @property
    def _settings(self) -> Profile:
        """One short measurement: the profile stage measures the winner as it should be."""
        own, seconds = self.config.profile, self.config.search.seconds
        return own.model_copy(
            update={
                "launches": 1,
                "operators": False,
                "multistream": False,
                "max_seconds": seconds,
                "min_seconds": min(own.min_seconds, seconds / 4),
            }
        )

    # -- files ------------------------------------------------------------------------------

    def _files(
        self, module: nn.Module, network: Model, folder: Path, quantized: Variant | None
    ) -> Iterator[ExportedFile]:
        """The formats that the targets' runtimes open, in every precision that is asked for."""
        config, dataset = self.config.export, self.dataset
        # Which way to OpenVINO is faster is found out for the winner alone.
        settings = config.model_copy(update={"producer": "onnx"})
        card = ModelCard(
            role="student", model=network.model, args=network.args, classes=dataset.classes,
            input=dataset.input, parameters=None, seed=self.config.seed,
        )  # fmt: skip
        example = dataset.tensor(np.resize(dataset.train, _SAMPLES))
        onnx = folder / "student.onnx"
        source = Source(module, card, example, onnx)
        for format in dict.fromkeys(["onnx", *self.formats]):
            exported = EXPORTERS.get(format)(source, folder, settings)
            if format not in self.formats:
                continue
            yield _file(format, "f32", exported.files, folder)
            if quantized is not None:
                yield self._quantized(format, exported, onnx, folder, quantized)

    def _quantized(
        self, format: str, exported: Exported, onnx: Path, folder: Path, variant: Variant
    ) -> ExportedFile:
        """Calibrated on a few samples: ranges do not change how long it takes."""
        from edgekd.quantize.arithmetic import arithmetic
        from edgekd.quantize.backend import Source as Float
        from edgekd.quantize.backend import prepare
        from edgekd.quantize.recipes import RECIPES

        assert self.config.quantize is not None
        recipe = RECIPES.find(self.config.quantize.recipe, self.base)
        few = self.dataset.tensor(np.resize(self.dataset.train, _CALIBRATION)).numpy()
        made = prepare(
            Float(format, exported.path, onnx, folder),
            recipe,
            list(few[:, None]),
            arithmetic(recipe, self.targets),
        )
        path = folder / f"student-{variant}{exported.path.suffix}"
        return _file(format, variant, made.write(path), folder)

    # -- figures ----------------------------------------------------------------------------

    def _figures(self, files: tuple[ExportedFile, ...], root: Path) -> Iterator[Cost]:
        absent = [t for t in self.targets if t.predicted or t.name in self.away]
        attached = [target for target in self.targets if target not in absent]
        if attached:
            most = max(self._settings.batch_size, self._settings.throughput_batch_size)
            example = self.dataset.tensor(np.resize(self.dataset.train, most)).numpy()
            report, _, _ = profile(
                files, attached, self._settings, example, root=root, progress=Silent()
            )
            yield from measured(report)
        for target in absent:
            yield from self._predicted(files, target, root)

    def _predicted(
        self, files: tuple[ExportedFile, ...], target: Target, root: Path
    ) -> Iterator[Cost]:
        where = cost_model_path(target, self.base)
        calibration = Calibration.read(where)
        for runtime in target.runtimes:
            for file in files:
                if file.format not in RUNTIMES[runtime].formats:
                    continue
                estimate = forecast(
                    root / file.path, target, runtime, calibration, where=str(where)
                ).estimate
                about: Any = {
                    "target": target.name,
                    "runtime": runtime,
                    "variant": file.variant,
                    "provenance": "predicted",
                }
                yield Cost(
                    metric="latency_p50",
                    value=estimate.seconds,
                    interval=estimate.interval,
                    **about,
                )
                yield Cost(metric="size", value=file.size, **about)


def places(config: Config, base: Path) -> list[Target]:
    """The targets that budgets on cost speak of, each with the runtimes that they speak of.

    Without any such budget the first target and runtime of the profile, for the front's sake. Raises
    UsageError for a target that there is not, or a runtime that a target has not.
    """
    budgets = [(i, b) for i, b in enumerate(config.gate.budgets) if b.metric in ON_COST]
    names = config.profile.targets
    found: dict[str, dict[str, None]] = {}
    for i, budget in budgets:
        for name in [budget.target] if budget.target else names:
            target = find(name, base, where=f"gate.budgets.{i}.target" if budget.target else None)
            if budget.runtime not in (None, *target.runtimes):
                raise UsageError(
                    f"target {name!r} has no runtime {budget.runtime!r}"
                    + suggestion(budget.runtime or "", target.runtimes),
                    where=f"gate.budgets.{i}.runtime",
                )
            chosen = [budget.runtime] if budget.runtime else target.runtimes
            found.setdefault(name, {}).update(dict.fromkeys(chosen))
    if not found:
        found = {names[0]: dict.fromkeys(find(names[0], base).runtimes[:1])}
    return [
        find(name, base).model_copy(update={"runtimes": list(runtimes)})
        for name, runtimes in found.items()
    ]


def out_of_reach(targets: Sequence[Target], base: Path) -> tuple[str, ...]:
    """Targets that have to be measured by hand or cannot be reached: their cost models speak for them.

    Raises StageError where there is no cost model either.
    """
    found = []
    for target in targets:
        reason = None if target.predicted else _why_away(target)
        if reason is None:
            continue
        try:
            cost_model_path(target, base)
        except UsageError:
            raise StageError(
                reason,
                where=f"target {target.name}",
                fix="attach it; or, to search without it, once while it is attached: edgekd targets "
                f"calibrate {target.name}",
            ) from None
        found.append(target.name)
    return tuple(found)


def _why_away(target: Target) -> str | None:
    """Why candidates cannot be measured there one after the other, if they cannot."""
    if by_hand(target):
        return f"{target.name} is measured by hand, which no search can do for every candidate"
    transport = TRANSPORTS.get(target.transport)()
    if target.transport == "local" or not isinstance(transport, Describes):
        return None
    try:
        transport.describe(target)
    except StageError as error:
        return error.what
    return None


def measured(report: ProfileReport) -> Iterator[Cost]:
    """The figures of a profile that budgets speak of."""
    for m in report.measurements:
        about: Any = {
            "target": m.target,
            "runtime": m.runtime,
            "variant": m.variant,
            "provenance": m.provenance,
        }
        for metric, value, interval in _timed(m):
            yield Cost(metric=metric, value=value, interval=interval, noisy=bool(m.noise), **about)
        if m.memory.model is not None:
            yield Cost(metric="memory", value=m.memory.model, **about)
        yield Cost(metric="size", value=m.size, **about)


def _timed(m: Measurement) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    yield "latency_p50", m.latency.p50, m.latency.p50_interval
    if m.latency.kind == "call":
        yield "latency_p90", m.latency.p90, m.latency.p90_interval
        yield "latency_p99", m.latency.p99, m.latency.p99_interval
        if m.latency.p95 is not None:
            yield "latency_p95", m.latency.p95, m.latency.p95_interval
    yield "throughput", m.throughput, m.throughput_interval
    if m.energy is not None:
        yield "energy", m.energy.value, m.energy.interval


def quantized_variant(config: Config, base: Path) -> Variant | None:
    """What the quantized files are called, where there are to be any."""
    if config.quantize is None:
        return None
    from edgekd.quantize.recipes import RECIPES

    weights = RECIPES.find(config.quantize.recipe, base).method
    return "int4" if weights == "weights-int4" else "int8"


def _file(format: str, variant: Variant, parts: tuple[Path, ...], root: Path) -> ExportedFile:
    """As the teacher's: a target that is too small for one says so, instead of failing for all."""
    return ExportedFile(
        role="teacher",
        format=format,
        variant=variant,
        path=str(parts[0].relative_to(root)),
        files=tuple(str(part.relative_to(root)) for part in parts),
        size=sum(part.stat().st_size for part in parts),
        seconds=0.0,
    )
