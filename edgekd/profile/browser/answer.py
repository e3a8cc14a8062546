"""What a page sends back: validated, and compared with ONNX Runtime's outputs here."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekd.config.schema import Verify
from edgekd.config.units import format_quantity
from edgekd.errors import StageError
from edgekd.profile.device.measure import drifts, relative_width
from edgekd.profile.device.runtimes import load
from edgekd.profile.received import printable
from edgekd.results import QUANTIZED

# Output values per model and phase that are compared, and samples that are believed.
OUTPUT_LIMIT, _SAMPLES = 65_536, 1_000_000

Text = Annotated[str, Field(max_length=300)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Duration = Annotated[float, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Progress(_Answer):
    """How far a phase is; what `tell` gets."""

    phase: Literal["latency", "throughput"]
    models: list[Text] = Field(min_length=1, max_length=100)
    spent: Duration
    width: Annotated[float, Field(ge=0)] | None
    p50: list[Seconds] = Field(max_length=100)


class Failure(_Answer):
    """Why a page gave up."""

    error: Annotated[str, Field(max_length=500)]


class Phase(_Answer):
    """Samples of one model. Each is the mean of `calls` calls; `outputs` is base64 of float32."""

    batch_size: Count
    warmup: Count
    settled: bool
    calls: Annotated[int, Field(ge=1, le=10**9)]
    seconds: list[Seconds] = Field(min_length=1, max_length=_SAMPLES)
    rounds: list[Count] = Field(min_length=1, max_length=_SAMPLES)
    outputs: Annotated[str, Field(max_length=6 * OUTPUT_LIMIT)]

    @model_validator(mode="after")
    def _every_round(self) -> Phase:
        steps = np.diff(np.array([-1, *self.rounds]))
        if len(self.rounds) != len(self.seconds) or steps[0] != 1 or not set(steps) <= {0, 1}:
            raise ValueError("seconds and rounds should be as many, and rounds count from 0")
        return self


class Heap(_Answer):
    """Bytes of WebAssembly memory before the model was loaded, and at most."""

    baseline: Count
    peak: Count


class Model(_Answer):
    """One model in its worker."""

    load: Duration
    first: Duration
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")]
    precision: Literal["f32", "f16"]
    threads: Annotated[int, Field(ge=1, le=1024)]
    heap: Heap | None
    latency: Phase | None = None
    throughput: Phase | None = None


class Environment(_Answer):
    """What the browser says of itself; None where it does not."""

    user_agent: Text | None
    device: Text | None
    architecture: Text | None
    system: Text | None
    cores: Annotated[int, Field(ge=1, le=4096)] | None
    memory_gib_rounded: Annotated[float, Field(gt=0, le=1024)] | None
    cross_origin_isolated: bool
    clock_tick_seconds: Annotated[float, Field(gt=0, le=10)]
    page_was_hidden: bool


class Answer(_Answer):
    """The whole of a measurement."""

    models: dict[Text, Model] = Field(max_length=100)
    environment: Environment


def references(plan: dict[str, Any], inputs: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """What ONNX Runtime answers here to inputs (n, …) float32, by model and phase, flattened.

    Raises StageError for a model that it does not run.
    """
    found = {}
    for model in plan["models"]:
        try:
            session = load("onnxruntime", model["path"], threads=1, precision=model["precision"])
            for phase in plan["phases"]:
                shape = (plan["batch_sizes"][phase], *inputs.shape[1:])
                outputs = session.run(np.ascontiguousarray(np.resize(inputs, shape)))
                values = np.concatenate([y.astype(np.float32).ravel() for y in outputs])
                found[model["id"], phase] = values[:OUTPUT_LIMIT]
        except Exception as error:
            reason = printable(str(error).splitlines()[0] if str(error) else repr(error), 300)
            raise StageError(
                f"{model['id']}: ONNX Runtime cannot run it here, to compare with: {reason}"
            ) from None
    return found


def accept(
    body: bytes, plan: dict[str, Any], expected: dict[tuple[str, str], np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`result.json` and the samples, from what a page posted; `expected` is from `references`.

    Raises StageError for an answer that is malformed, to another plan, or whose outputs are not
    those of ONNX Runtime on this machine.
    """
    try:
        answer = Answer.model_validate_json(body)
    except ValidationError as error:
        raise StageError(f"the browser's result is malformed: {first_problem(error)}") from None
    _check_plan(answer, plan)
    hidden = answer.environment.page_was_hidden
    noise = ["the page was not in front all the time: browsers slow it down"] if hidden else []
    results: dict[str, Any] = {}
    samples: dict[str, np.ndarray] = {}
    for model in plan["models"]:
        said = answer.models[model["id"]]
        share = max(
            _error(model, getattr(said, name), expected[model["id"], name])
            for name in plan["phases"]
        )
        results[model["id"]] = {**_result(said, plan, share), "noise": noise}
        for name in plan["phases"]:
            phase = getattr(said, name)
            samples[f"{model['id']}/{name}"] = np.array(phase.seconds)
            samples[f"{model['id']}/{name}/rounds"] = np.array(phase.rounds, np.int32)
            samples[f"{model['id']}/{name}/launches"] = np.zeros(len(phase.rounds), np.int32)
    facts = answer.environment.model_dump()
    return {
        "models": results,
        "environment": {"cpu_model": _machine(answer.environment), **facts},
        "warnings": _warnings(answer, plan),
    }, samples


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's errors: where and what, without the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:200] or 'it'}: {first['msg'][:200]}"


def _check_plan(answer: Answer, plan: dict[str, Any]) -> None:
    """Raises StageError when other models, phases or batches were measured than was asked."""

    def refuse(text: str) -> None:
        raise StageError(f"the browser's result is not of this plan: {text}")

    if set(answer.models) != {model["id"] for model in plan["models"]}:
        refuse("it has other models")
    for name in ("latency", "throughput"):
        counts: dict[str, int] = {}
        for model in plan["models"]:
            phase: Phase | None = getattr(answer.models[model["id"]], name)
            if (phase is not None) != (name in plan["phases"]):
                refuse(f"{model['id']} has a phase too many or too few")
            if phase is not None:
                if phase.batch_size != plan["batch_sizes"][name]:
                    refuse(f"{model['id']} was measured at another batch size")
                if counts.setdefault(model["runtime"], phase.rounds[-1]) != phase.rounds[-1]:
                    refuse("the models did not take turns")


def _error(model: dict[str, Any], phase: Phase, reference: np.ndarray) -> float:
    """max|Δ| / max|reference| over the first output values. Raises StageError beyond tolerance."""
    try:
        found = np.frombuffer(base64.b64decode(phase.outputs, validate=True), "<f4")
    except (ValueError, binascii.Error):
        found = np.zeros(0, np.float32)
    if found.shape != reference.shape:
        raise StageError(f"{model['id']}: the browser's outputs are not as many as ONNX Runtime's")
    error = np.abs(found.astype(np.float64) - reference).max()
    share = float(error / max(np.abs(reference).max(), np.finfo(np.float32).tiny))
    quantized = model.get("variant") in QUANTIZED
    tolerance = Verify().int8_tolerance if quantized else Verify().tolerance
    if not share <= tolerance:
        raise StageError(
            f"{model['id']}: the browser computes something else: its outputs differ from ONNX "
            f"Runtime's by {share:.2e} of the largest; at most {tolerance:g} is allowed"
        )
    return share


def _result(said: Model, plan: dict[str, Any], error: float) -> dict[str, Any]:
    result = {
        "load": said.load,
        "first": said.first,
        "version": said.version,
        "precision": said.precision,
        "threads": said.threads,
        # Browsers do not tell what a process holds.
        "peak_rss": None,
        "baseline_rss": None,
        "wasm_heap": said.heap.peak if said.heap else None,
        "wasm_heap_baseline": said.heap.baseline if said.heap else None,
        "parity_error": error,
    }
    for name in plan["phases"]:
        phase: Phase = getattr(said, name)
        seconds, rounds = np.array(phase.seconds), np.array(phase.rounds)
        blocks = np.split(seconds, np.flatnonzero(np.diff(rounds)) + 1)
        medians = np.array([np.median(block) for block in blocks])
        result[name] = {
            "batch_size": phase.batch_size,
            "warmup": phase.warmup,
            "conclusive": bool(relative_width(medians) < plan["interval"]),
            "steady": phase.settled and not drifts(medians, plan["interval"]),
            "kind": "call" if phase.calls == 1 else "mean",
        }
    return result


def _machine(said: Environment) -> str | None:
    """What stands for a CPU's name: runs are comparable only where it is the same."""
    cores = f"{said.cores} cores" if said.cores else None
    return " ".join(t for t in (said.device, said.system, said.architecture, cores) if t) or None


def _warnings(answer: Answer, plan: dict[str, Any]) -> list[str]:
    said, found = answer.environment, []
    tick = format_quantity(said.clock_tick_seconds, "time")
    if not said.cross_origin_isolated:
        found.append(
            "the page was not cross-origin isolated (plain http): one thread, and a clock that "
            f"ticks every {tick}"
        )
    for model in plan["models"]:
        mine = answer.models[model["id"]]
        if mine.threads != model["threads"]:
            found.append(f"{model['id']}: ran with {mine.threads} thread, not {model['threads']}")
        if mine.latency and mine.latency.calls > 1:
            found.append(
                f"{model['id']}: each sample is the mean of {mine.latency.calls} calls, since the "
                f"clock ticks every {tick}: there are no p90 and p99 of single calls"
            )
    return found
