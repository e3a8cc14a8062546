"""Results that a bundle's device wrote: read as what a stranger may have written, and kept in the run."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from edgekd.artifacts import read_json, sha256_file, write_bytes
from edgekd.errors import UsageError
from edgekd.pipeline.run import Run
from edgekd.profile.bundle import record_path
from edgekd.profile.targets import Name
from edgekd.results import DeviceParity, Record

MAX_BYTES = 256 << 20
# No inference takes that long: 11 days.
_MOST_NANOSECONDS = 10**15


def _printable(text: str) -> str:
    """What a device says is shown on terminals and in reports."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:1000]


class _Strict(Record):
    model_config = ConfigDict(strict=True)


Text = Annotated[str, AfterValidator(_printable)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(gt=0, lt=_MOST_NANOSECONDS / 1e9)]
Bytes = Annotated[int, Field(gt=0, lt=2**50)]
Count = Annotated[int, Field(ge=0, lt=2**40)]
Share = Annotated[float, Field(ge=0, le=1)]
Plain = Text | bool | int | float | None
Plains = Annotated[list[Plain], Field(max_length=100)]
Entries = Annotated[dict[Text, Plain | Plains], Field(max_length=100)]
Described = (
    Plain
    | Annotated[list[Plain | Entries], Field(max_length=1000)]
    | Annotated[dict[Text, Plain | Plains | Entries], Field(max_length=100)]
)


class Manifest(_Strict):
    """`MANIFEST.json` of the bundle that was run."""

    id: Digest
    edgekd: Text
    run: Text
    target: Name
    plan: dict[str, JsonValue]
    check: dict[str, JsonValue]
    files: dict[str, Digest]


class Parity(DeviceParity):
    """As the device computed it."""

    model_config = ConfigDict(strict=True)

    samples: Annotated[int, Field(ge=1)]
    max_error: Annotated[float, Field(ge=0)]
    agreement: Share | None
    accuracy: Share | None
    accuracy_here: Share | None
    tolerance: Annotated[float, Field(ge=0)]


class Phase(_Strict):
    """How one measurement of a model went."""

    batch_size: Annotated[int, Field(ge=1)]
    warmup: Count
    conclusive: bool
    steady: bool


Starts = Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=1000)]


class Cold(_Strict):
    """Seconds of the steps to the first answer, one value per launch."""

    runtime_seconds: Starts
    load: Starts
    compile: Annotated[list[float | None], Field(max_length=1000)]
    first: Starts


class Figures(_Strict):
    """What was measured of one model besides the samples (see `device/measure.py`)."""

    load: Seconds
    first: Seconds
    launches: Annotated[int, Field(ge=1, le=1000)]
    cold: Cold
    noise: Annotated[list[Text], Field(max_length=20)]
    energy: Annotated[list[Annotated[float, Field(ge=0)] | None], Field(max_length=1000)]
    python_rss: Bytes | None
    private_dirty: Annotated[int, Field(gt=-(2**50), lt=2**50)] | None
    version: Text
    precision: Literal["f32", "f16", "bf16"]
    baseline_rss: Bytes
    peak_rss: Bytes
    latency: Phase
    throughput: Phase
    device_parity: Parity


class Samples(_Strict):
    """Every call's nanoseconds as base64 of little-endian int64; calls per round, rounds per launch."""

    nanoseconds: str
    rounds: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    launches: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            values = self.values()
        except (binascii.Error, ValueError):
            raise ValueError("nanoseconds should be base64 of int64") from None
        if len(values) != sum(self.rounds):
            raise ValueError(f"{len(values)} samples in rounds of {sum(self.rounds)}")
        if len(self.rounds) != sum(self.launches):
            raise ValueError(f"{len(self.rounds)} rounds in launches of {sum(self.launches)}")
        if values.min() <= 0 or values.max() > _MOST_NANOSECONDS:
            raise ValueError("nanoseconds should be positive, and less than 11 days")
        return self

    def values(self) -> np.ndarray:
        """Nanoseconds (n,) int64."""
        return np.frombuffer(base64.b64decode(self.nanoseconds, validate=True), "<i8")


class Result(_Strict):
    """`result.json` of a bundle."""

    format: Literal[1] = Field(alias="schema")
    manifest: Manifest
    models: Annotated[dict[Id, Figures], Field(min_length=1)]
    failed: dict[Id, Text]
    # Read as strictly where they are used, see `operators.py`.
    operators: dict[Id, JsonValue] = {}
    rooflines: dict[Id, JsonValue] = {}
    environment: Annotated[dict[Text, Described], Field(max_length=200)]
    warnings: Annotated[list[Text], Field(max_length=100)]
    samples: dict[Id, Samples]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Two phases of every model; models of one runtime were measured in the same rounds."""
        keys = {f"{model}/{phase}" for model in self.models for phase in ("latency", "throughput")}
        if keys != set(self.samples):
            raise ValueError("samples should be there for both phases of every model, and no other")
        rounds: dict[tuple[str, str], int] = {}
        for key, samples in self.samples.items():
            model, _, phase = key.rpartition("/")
            together = model.rpartition("/")[0], phase
            if rounds.setdefault(together, len(samples.rounds)) != len(samples.rounds):
                raise ValueError(f"samples.{key}: not as many rounds as the models beside it")
        return self


def read(path: Path) -> Result:
    """A result from elsewhere. Raises UsageError naming what is wrong in it."""
    fix = "it should be the result.json that bench.pyz wrote, unchanged"
    try:
        if not path.is_file():
            raise UsageError("no such file", where=str(path), fix=fix)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"larger than {MAX_BYTES >> 20} MiB", where=str(path), fix=fix)
    try:
        return Result.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        key = _printable(".".join(map(str, problem["loc"])))
        text = _printable(problem["msg"].removeprefix("Value error, "))
        raise UsageError(f"{key}: {text}" if key else text, where=str(path), fix=fix) from None


def result_path(run: Run, target: str) -> Path:
    """Where a run keeps the result of a target."""
    return run.path / "bundles" / f"{target}.result.json"


def find_run(result: Result, folder: Path) -> Run:
    """The run below `folder` that the bundle was made of. Raises UsageError when there is not one."""
    manifest = result.manifest
    runs = [Run(path.parent) for path in sorted(folder.glob("*/run.json"))]
    found = [run for run in runs if record_path(run, manifest.target, manifest.id).is_file()]
    if len(found) != 1:
        names = ", ".join(str(run.path) for run in found)
        raise UsageError(
            f"several runs made this bundle: {names}"
            if found
            else f"no run in {folder}/ made this bundle (of run {manifest.run!r}, "
            f"for target {manifest.target!r})",
            fix="name the run with --run",
        )
    return found[0]


def bring(path: Path, result: Result, run: Run) -> Path:
    """Keep the result at `path` in the run whose bundle it is of; returns where.

    Raises UsageError naming what differs when it is of another bundle or the run's files changed.
    """
    manifest = result.manifest
    _check_record(result, run)
    _check_models(result, run)
    kept = result_path(run, manifest.target)
    with run.locked():
        write_bytes(kept, path.read_bytes())
    return kept


def differences(there: Any, here: Any) -> list[str]:
    """Where two JSON values differ, one short text each."""
    one, other = _flat(there, ""), _flat(here, "")
    found = []
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key, "nothing"), other.get(key, "nothing")
        if a == b:
            continue
        name = PurePosixPath(str(b)).name
        if str(a).startswith("files/") and str(b).startswith("files/"):
            found.append(f"{key}: {name} is another file")
        elif key.startswith("files."):
            found.append(f"{key.removeprefix('files.')} is another file")
        else:
            found.append(f"{key} is {_printable(str(a))[:80]}, here {_printable(str(b))[:80]}")
    return found


def listed(texts: list[str]) -> str:
    """The first few of them."""
    more = f"; and {len(texts) - 4} more" if len(texts) > 4 else ""
    return "; ".join(texts[:4]) + more


def _flat(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        # Models by name rather than by number.
        items = {
            str(item["id"] if isinstance(item, dict) and "id" in item else i): item
            for i, item in enumerate(value)
        }.items()
    else:
        return {key: value}
    return {
        inner: leaf
        for name, item in items
        for inner, leaf in _flat(item, f"{key}.{name}" if key else str(name)).items()
    }


def _check_record(result: Result, run: Run) -> None:
    """The manifest must be, to the letter, one that this run has made."""
    manifest = result.manifest
    theirs = manifest.model_dump(mode="json")
    path = record_path(run, manifest.target, manifest.id)
    pattern = path.name.replace(manifest.id[:32], "[0-9a-f]" * 32)
    known = sorted(path.parent.glob(pattern), key=lambda p: p.stat().st_mtime)
    if not known:
        raise UsageError(
            f"no bundle for target {manifest.target!r} was made of this run",
            where=str(run.path),
            fix=f"this result is of run {manifest.run!r}; name that one with --run",
        )
    ours = read_json(path if path.is_file() else known[-1])
    if theirs != ours:
        what = [d for d in differences(theirs, ours) if not d.startswith("id is")]
        raise UsageError(
            f"is of another bundle than this run has made: {listed(what)}",
            where=f"the result for {manifest.target}",
            fix=f"make a bundle of {run.path} and measure again, or name the right run with --run",
        )
    _check_figures(result, ours["plan"], ours["check"]["models"])


def _check_figures(result: Result, plan: dict[str, Any], check: dict[str, Any]) -> None:
    """What was measured is what was asked for."""
    where = f"the result for {result.manifest.target}"
    models = {model["id"]: model for model in plan["models"]}
    if result.models.keys() & result.failed.keys() or (
        result.models.keys() | result.failed.keys()
    ) != set(models):
        raise UsageError("its models are not those of the bundle", where=where)
    for name, figures in result.models.items():
        asked = (models[name]["precision"], plan["batch_size"], plan["throughput_batch_size"])
        done = (figures.precision, figures.latency.batch_size, figures.throughput.batch_size)
        if asked != done:
            raise UsageError(
                f"{name}: precision and batch sizes are {done}, asked for {asked}", where=where
            )
        if figures.device_parity.tolerance != check[name]["tolerance"]:
            raise UsageError(f"{name}: its tolerance is not the bundle's", where=where)


def _check_models(result: Result, run: Run) -> None:
    """The run's files must still be those that were measured."""
    plan: Any = result.manifest.plan
    present = {sha256_file(run.path / part) for file in run.files for part in file.files}
    changed = [
        PurePosixPath(name).name
        for name, digest in result.manifest.files.items()
        if name.startswith("files/") and name != plan["inputs"] and digest not in present
    ]
    if changed:
        raise UsageError(
            f"no longer has the files that were measured: {', '.join(changed)} changed",
            where=str(run.path),
            fix="make a bundle of it and measure again",
        )


def unpack(result: Result, folder: Path) -> None:
    """Write `result.json` and `samples.npz` as a device that is attached leaves them."""
    write_bytes(folder / "result.json", result.model_dump_json(exclude={"samples"}).encode())
    arrays: dict[str, np.ndarray] = {}
    for name, samples in result.samples.items():
        arrays[name] = samples.values() / 1e9
        rounds = np.arange(len(samples.rounds), dtype=np.int32)
        arrays[f"{name}/rounds"] = np.repeat(rounds, samples.rounds)
        launches = np.repeat(np.arange(len(samples.launches), dtype=np.int32), samples.launches)
        arrays[f"{name}/launches"] = np.repeat(launches, samples.rounds)
    with (folder / "samples.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
