"""What came back from a device, before anything of it is used: complete, in range, and no larger."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekd.artifacts import read_json
from edgekd.errors import StageError, UsageError
from edgekd.results import SampleKind

_MOST_BYTES = 512 << 20
Seconds = Annotated[float, Field(ge=0, lt=86400)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 50)]
Text = Annotated[str, Field(max_length=300)]


class _Answer(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class _Phase(_Answer):
    batch_size: int = Field(ge=1)
    warmup: int = Field(ge=0)
    conclusive: bool
    steady: bool
    kind: SampleKind = "call"


class _Model(_Answer):
    load: Seconds
    first: Seconds
    version: Text
    precision: Text
    baseline_rss: Bytes
    peak_rss: Bytes
    latency: _Phase | None = None
    throughput: _Phase | None = None


class _Result(_Answer):
    models: dict[str, _Model]
    environment: dict[str, Any]
    warnings: list[Text] = Field(max_length=1000)


def check(folder: Path, plan: dict[str, Any]) -> None:
    """Refuse `result.json` or `samples.npz` unless they answer the plan. Raises StageError."""
    wanted = {model["id"] for model in plan["models"]}
    phases: list[Literal["latency", "throughput"]] = list(
        plan.get("phases", ("latency", "throughput"))
    )
    try:
        result = _Result.model_validate(read_json(folder / "result.json"))
        if result.models.keys() != wanted:
            raise ValueError("it is not about the models that were asked for")
        samples = _samples(folder / "samples.npz")
        for name, model in result.models.items():
            for phase in phases:
                about = getattr(model, phase)
                if about is None or about.batch_size != plan[_BATCH[phase]]:
                    raise ValueError(f"{name} has no {phase} at the batch size that was asked for")
                _check_samples(samples, f"{name}/{phase}")
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}") from None
    except UsageError as error:
        raise _refused(error.what) from None
    except (ValueError, OSError, KeyError, zipfile.BadZipFile, RecursionError) as error:
        raise _refused(str(error)[:300]) from None


_BATCH = {"latency": "batch_size", "throughput": "throughput_batch_size"}


def _refused(reason: str) -> StageError:
    return StageError(f"the device's result is not one: {reason}")


def _samples(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
            raise ValueError(f"its samples are larger than {_MOST_BYTES} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _check_samples(samples: dict[str, np.ndarray], key: str) -> None:
    times, rounds = samples.get(key), samples.get(f"{key}/rounds")
    if times is None or rounds is None or times.shape != rounds.shape or times.ndim != 1:
        raise ValueError(f"it has no samples of {key}")
    in_range = times.dtype.kind == "f" and len(times) and np.isfinite(times).all()
    if not in_range or times.min() <= 0 or times.max() > 86400:
        raise ValueError(f"the samples of {key} are no times")
    steps = np.diff(rounds.astype(np.int64)) if rounds.dtype.kind in "iu" else np.array([-1])
    if rounds[0] != 0 or not np.isin(steps, (0, 1)).all():
        raise ValueError(f"the rounds of {key} are not in order")
