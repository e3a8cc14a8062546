"""What comes back from another machine, checked before anything here relies on it or shows it."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgekd.errors import StageError
from edgekd.results import SampleKind

MAX_RESULT, MAX_SAMPLES = 4 << 20, 256 << 20
# What json, zipfile, zlib and numpy raise for bytes that are not what they should be.
_MALFORMED = (ValueError, KeyError, RuntimeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
_PHASES = ("latency", "throughput")
_BATCH_SIZES = {"latency": "batch_size", "throughput": "throughput_batch_size"}
_MOST_SECONDS = 86_400


Seconds = Annotated[float, Field(ge=0, lt=86_400)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 50)]


class _Strict(BaseModel):
    """What is relied on; more may be there."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Phase(_Strict):
    batch_size: int = Field(ge=1)
    warmup: int = Field(ge=0)
    conclusive: bool
    steady: bool
    kind: SampleKind = "call"


class _Model(_Strict):
    version: str
    precision: str
    load: Seconds
    first: Seconds
    baseline_rss: Bytes
    peak_rss: Bytes


class _TooLarge(_Strict):
    """A model that the device's limits leave no memory for."""

    model_config = ConfigDict(extra="forbid")
    error: str


def _measured_or_too_large(value: Any) -> Any:
    kind = _TooLarge if isinstance(value, dict) and "error" in value else _Model
    return kind.model_validate(value)


class _Result(_Strict):
    models: dict[str, Annotated[Any, AfterValidator(_measured_or_too_large)]]
    environment: dict[str, Any]
    warnings: list[str] = Field(max_length=100)


def keep(plan: dict[str, Any], result: bytes, samples: bytes, folder: Path, *, where: str) -> None:
    """Write a device's `result.json` and `samples.npz` to `folder` if they are an answer to `plan`.

    `where` names the target in errors. Raises StageError for anything else than that.
    """
    try:
        if len(result) > MAX_RESULT or len(samples) > MAX_SAMPLES:
            raise ValueError("they are too large")
        value = clean(json.loads(result, parse_constant=_no_number))
        _check_result(plan, value)
        _check_samples(plan, samples, _answered(value))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"result.json: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise _unusable(reason, where) from None
    except _MALFORMED as error:
        raise _unusable(str(error), where) from None
    (folder / "result.json").write_text(json.dumps(value))
    (folder / "samples.npz").write_bytes(samples)


def _unusable(reason: str, where: str) -> StageError:
    return StageError(f"the device's results cannot be used: {printable(reason)}", where=where)


def printable(text: str, limit: int = 500) -> str:
    """`text` on one line, shortened, and without anything that a terminal would obey."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def clean(value: Any) -> Any:
    """A JSON value with every text `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): clean(item) for key, item in value.items()}
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"result.json contains {name}")


def _check_result(plan: dict[str, Any], value: Any) -> None:
    found = _Result.model_validate(value)
    expected = {model["id"] for model in plan["models"]}
    if set(found.models) != expected:
        raise ValueError(f"they are about {sorted(found.models)}, not {sorted(expected)}")
    for name in _answered(value):
        for phase in plan.get("phases", _PHASES):
            about = _Phase.model_validate(value["models"][name].get(phase))
            if about.batch_size != plan.get(_BATCH_SIZES.get(phase, ""), about.batch_size):
                raise ValueError(f"{name}: {phase} was measured at batch {about.batch_size}")


def _answered(value: Any) -> list[str]:
    """The models that were measured, rather than too large."""
    return [name for name, model in value["models"].items() if "error" not in model]


def _check_samples(plan: dict[str, Any], samples: bytes, models: list[str]) -> None:
    with zipfile.ZipFile(io.BytesIO(samples)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_SAMPLES:
            raise ValueError("samples.npz is too large")
        for entry in archive.infolist():
            with archive.open(entry) as file:
                _check_header(file, entry)
    with np.load(io.BytesIO(samples), allow_pickle=False) as arrays:
        for model in models:
            for phase in plan.get("phases", _PHASES):
                _check_times(arrays, f"{model}/{phase}")


def _check_header(file: Any, entry: zipfile.ZipInfo) -> None:
    """A short file may say that its array is huge: memory is taken by what the header says."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{entry.filename}: not an array of numbers")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if (
        dtype.kind not in "fiub"
        or file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size
    ):
        raise ValueError(f"{entry.filename}: not an array of numbers, or not a whole one")


def _check_times(arrays: Any, key: str) -> None:
    times, rounds = arrays[key], arrays[f"{key}/rounds"]
    whole = times.ndim == rounds.ndim == 1 and len(times) == len(rounds) > 0
    if not whole or times.dtype != np.float64 or rounds.dtype.kind != "i":
        raise ValueError(f"{key}: should be float64 seconds and the round of each")
    if not (np.isfinite(times).all() and (times > 0).all() and (times < _MOST_SECONDS).all()):
        raise ValueError(f"{key}: times should be positive, and less than a day")
    for name in (f"{key}/rounds", f"{key}/launches"):
        if name in arrays:
            _check_counts(arrays[name], len(times), name)


def _check_counts(values: np.ndarray, calls: int, name: str) -> None:
    whole = values.ndim == 1 and len(values) == calls and values.dtype.kind == "i"
    if not whole or values[0] != 0 or not np.isin(np.diff(values), (0, 1)).all():
        raise ValueError(f"{name}: should count up from 0, one for each call")
