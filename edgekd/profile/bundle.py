"""Offline bundles: everything that a device without a network needs to measure a run, in one zip file.

`bench.pyz` is the device part (`device/bundle.py`), `MANIFEST.json` the plan, what the outputs are
checked against, and the SHA-256 of every file. Equal content gives equal bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import edgekd
from edgekd.artifacts import atomic_path, sha256_file, sha256_json, write_json
from edgekd.config.schema import Config
from edgekd.data.resolve import load
from edgekd.errors import UsageError
from edgekd.pipeline.run import Run
from edgekd.pipeline.standing import standing
from edgekd.profile.measure import Entry, list_entries, make_plan
from edgekd.profile.parcel import pack, runner
from edgekd.profile.targets import Target
from edgekd.results import QUANTIZED

_STAGES = ("export", "quantize", "verify")
_README = """\
Benchmark of the models of run {run!r} for target {target!r}, made by edgekd {edgekd}.
It runs without a network and changes nothing outside its own folder.

Needs: Linux, Python 3.9 or newer, numpy and {runtimes}. Once, with a network:

    python3 -m pip install numpy {runtimes}

(made with {versions}). Then:

    python3 bench.pyz

It checks every file against MANIFEST.json, runs every model on {samples} test samples, compares the
outputs with those where it was made, measures latency, throughput and memory, and writes
result.json: please send that file back. For good numbers leave the device alone meanwhile, on its
power supply. If this folder cannot be written: python3 bench.pyz --out /elsewhere/result.json
"""


def make(
    run: Run, target: Target, config: Config, base: Path, out: Path, *, samples: int
) -> dict[str, Any]:
    """Write the bundle of a verified run for `target` to `out`, atomically; returns its manifest.

    The run keeps the manifest, so that `edgekd import` knows the result again. `samples` is the
    most test samples the outputs are checked with; `base` is where relative paths of `config` start.
    Raises UsageError when the run is not verified, or was changed since, or `target` is no bundle's.
    """
    if target.transport != "bundle":
        raise UsageError(
            f"target {target.name!r} is reached by {target.transport}, not by a bundle",
            where="--target",
            fix="use `offline`, or write a target of your own with `transport: bundle`",
        )
    _check_verified(run)
    with tempfile.TemporaryDirectory(prefix="edgekd-bundle-") as name:
        manifest, files = _contents(run, target, config, base, samples, Path(name))
        _write_zip(out, manifest, files)
    write_json(record_path(run, target.name, manifest["id"]), manifest)
    return manifest


def record_path(run: Run, target: str, identity: str) -> Path:
    """Where a run keeps the manifest of a bundle that was made of it."""
    return run.path / "bundles" / f"{target}-{identity[:32]}.json"


def _check_verified(run: Run) -> None:
    stages = standing(run, intact=True)
    for name in _STAGES:
        if name not in stages:
            raise UsageError(
                f"stage {name} is not done, or its files were changed since",
                where=str(run.path),
                fix=f"run `edgekd verify {run.path}` first",
            )


def _contents(
    run: Run, target: Target, config: Config, base: Path, samples: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The manifest, and what is packed beside it by its path in the bundle."""
    dataset = load(config.data, config.data.seed, base)
    settings = config.profile
    most = max(settings.batch_size, settings.throughput_batch_size)
    entries = list_entries(run.files, target)
    np.save(folder / "inputs.npy", dataset.tensor(dataset.test[:most]).numpy())
    parcel = pack(make_plan(entries, settings, folder / "inputs.npy", run.path))

    checked = dataset.test[:samples]
    arrays = {"inputs": dataset.tensor(checked).numpy(), "labels": dataset.labels[checked]}
    with np.load(run.path / "verify/logits.npz", allow_pickle=False) as logits:
        if not np.array_equal(logits["indices"], dataset.test):
            raise UsageError(
                "the data is not what the run was verified with",
                where=str(run.path),
                fix=f"run `edgekd verify {run.path}` first",
            )
        for entry in entries:
            answers = logits[f"{entry.runtime}/{entry.file.name}"]
            arrays[f"{entry.runtime}-{entry.file.name}"] = answers[: len(checked)]
    files = dict(parcel.files)
    for name, array in arrays.items():
        files[f"check/{name}.npy"] = folder / f"check-{name}.npy"
        np.save(folder / f"check-{name}.npy", array)
    files |= _own(folder, config.name, target, len(checked))
    manifest = {
        "edgekd": edgekd.__version__,
        "run": config.name,
        "target": target.name,
        "plan": parcel.plan,
        "check": {
            "inputs": "check/inputs.npy",
            "labels": "check/labels.npy",
            "models": {entry.id: _expected(entry, config) for entry in entries},
        },
        "files": {name: sha256_file(path) for name, path in sorted(files.items())},
    }
    # As the device reads it: JSON knows no tuples.
    manifest = json.loads(json.dumps(manifest))
    return {"id": sha256_json(manifest), **manifest}, files


def _expected(entry: Entry, config: Config) -> dict[str, Any]:
    quantized = entry.file.variant in QUANTIZED
    return {
        "outputs": f"check/{entry.runtime}-{entry.file.name}.npy",
        "tolerance": config.verify.int8_tolerance if quantized else config.verify.tolerance,
    }


def _own(folder: Path, run: str, target: Target, samples: int) -> dict[str, Path]:
    """The runner and the README, written to `folder`."""
    (folder / "bench.pyz").write_bytes(runner())
    (folder / "README.txt").write_text(
        _README.format(
            run=run,
            target=target.name,
            edgekd=edgekd.__version__,
            runtimes=" ".join(target.runtimes),
            versions=", ".join(f"{name} {_version(name)}" for name in ("numpy", *target.runtimes)),
            samples=samples,
        )
    )
    return {name: folder / name for name in ("bench.pyz", "README.txt")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _write_zip(out: Path, manifest: dict[str, Any], files: dict[str, Path]) -> None:
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_entry("MANIFEST.json"), text.encode())
        for name, path in sorted(files.items()):
            entry = _entry(name)
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(entry, "w") as packed:
                shutil.copyfileobj(source, packed)


def _entry(name: str) -> zipfile.ZipInfo:
    """Without a date, so that equal content gives equal bytes."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
