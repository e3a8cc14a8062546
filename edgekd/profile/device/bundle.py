"""A bundle on its device: `python3 bench.pyz [FOLDER]` checks files and outputs, then measures, offline.

Nothing is loaded before the SHA-256 of every file is that of MANIFEST.json, and `result.json` is
one file that is either whole or not there.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
_MANIFEST, _MANIFEST_BYTES = "MANIFEST.json", 16 << 20
_REASON = 1000  # the most characters of a device's own words


class BundleError(Exception):
    """The bundle cannot be used; the text says why."""


def main(arguments: list[str]) -> int:
    """0 measured, 2 the bundle cannot be used, 3 no model could be measured, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="bench.pyz", description="Measure the models of this bundle and write result.json."
    )
    beside = Path(sys.argv[0]).resolve().parent
    parser.add_argument("folder", nargs="?", type=Path, default=beside, help="default: its own")
    parser.add_argument("-o", "--out", type=Path, help="default: result.json in the folder")
    options = parser.parse_args(arguments)
    out = options.out or options.folder / "result.json"
    try:
        _check_python()
        manifest = verified(options.folder)
        _check_writable(out)
        result = bench(manifest, options.folder, _Screen().show)
        if result["models"]:
            write(out, result)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyError, TypeError, ValueError, OSError) as error:
        print(f"error: this bundle cannot be run: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    if not result["models"]:
        runtimes = sorted({model["runtime"] for model in manifest["plan"]["models"]})
        print("error: no model runs here, see above. If a runtime is missing: "
              f"python3 -m pip install {' '.join(runtimes)}", file=sys.stderr)  # fmt: skip
        return 3
    print(f"wrote {out}; where the bundle was made: edgekd import {out.name}", file=sys.stderr)
    return 0


def verified(folder: Path) -> dict[str, Any]:
    """The manifest, after everything that it names was found to be what it says.

    `plan` and `check` name files of `files` only, which maps paths to SHA-256; `id` is the SHA-256
    of the rest. Raises BundleError.
    """
    manifest = _manifest(folder / _MANIFEST)
    try:
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
        used = [model["path"] for model in manifest["plan"]["models"]]
        check = manifest["check"]
        used += [manifest["plan"]["inputs"], check["inputs"], check["labels"]]
        used += [check["models"][model["id"]]["outputs"] for model in manifest["plan"]["models"]]
        identity = fingerprint({key: manifest[key] for key in manifest if key != "id"})
        told = manifest["id"]
    except (KeyError, TypeError, AttributeError):
        raise BundleError(f"{_MANIFEST} is not one that edgekd wrote") from None
    if identity != told:
        raise BundleError(f"{_MANIFEST} was edited: its id is no longer that of its content")
    for name, digest in files.items():
        _check_file(folder, name, digest)
    for name in used:
        if name not in files:
            raise BundleError(f"{_MANIFEST}: the plan uses {name!r}, which is not among its files")
    return manifest


def fingerprint(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def bench(manifest: dict[str, Any], folder: Path, show: Callable[..., None]) -> dict[str, Any]:
    """Check every model's outputs, measure those that run, and return all of it as plain JSON."""
    plan = {**manifest["plan"], "inputs": str(folder / manifest["plan"]["inputs"])}
    models = [{**model, "path": str(folder / model["path"])} for model in plan["models"]]
    parity, failed = _check_outputs(models, manifest["check"], folder, plan["batch_size"], show)
    result, samples = _measured(
        {**plan, "models": [model for model in models if model["id"] in parity]}, failed, show
    )
    for name, figures in result["models"].items():
        figures["device_parity"] = parity[name]
    return {
        "schema": SCHEMA,
        "manifest": manifest,
        **result,
        "failed": failed,
        "samples": _packed(samples),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write `result` as JSON, atomically. Raises BundleError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            json.dump(result, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def _check_python() -> None:
    if sys.version_info < (3, 9):
        raise BundleError(f"needs Python 3.9 or newer, this is {sys.version.split()[0]}")
    if importlib.util.find_spec("numpy") is None:
        raise BundleError("needs numpy: python3 -m pip install numpy")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is not there: unpack the whole zip file into one folder")
        with path.open("rb") as file:
            data = file.read(_MANIFEST_BYTES + 1)
        manifest = json.loads(data) if len(data) <= _MANIFEST_BYTES else None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise BundleError(f"{path} is not one that edgekd wrote")
    return manifest


def _check_file(folder: Path, name: str, digest: str) -> None:
    """A plain file below `folder`, on no link's way, with this SHA-256."""
    parts = name.split("/")
    if not name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{_MANIFEST}: {name!r} is not a path inside the bundle")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{name!r} is a link, not a file of the bundle")
    try:
        actual = _sha256(path) if path.is_file() else None
    except OSError as error:
        raise BundleError(f"{name!r} cannot be read: {error.strerror}") from None
    if actual is None:
        raise BundleError(f"{name!r} is missing: unpack the whole zip file into one folder")
    if actual != digest:
        raise BundleError(f"{name!r} is not the file that was bundled: its SHA-256 differs")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _check_writable(out: Path) -> None:
    """Before minutes are spent."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise BundleError(f"{out} cannot be written: name another file with --out")


def _check_outputs(
    models: list[dict[str, Any]],
    check: dict[str, Any],
    folder: Path,
    batch_size: int,
    show: Callable[..., None],
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By id: how the outputs of the models that run compare, and why the others do not run."""
    import numpy as np

    from .measure import MeasureError, outputs

    labels = np.load(folder / check["labels"], allow_pickle=False)
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for model in models:
        name, expected = model["id"], check["models"][model["id"]]
        reference = np.load(folder / expected["outputs"], allow_pickle=False)

        def told(done: int, name: str = name) -> None:
            show(f"checking {name}: {done} of {len(labels)} samples")

        try:
            answers = outputs(model, str(folder / check["inputs"]), batch_size, told)
            found[name] = _parity(answers, reference, labels, expected["tolerance"])
            show(_parity_line(name, found[name]), last=True)
        except (MeasureError, ValueError) as error:
            failed[name] = _one_line(error).removeprefix(f"{name}: ")
            show(f"{name} does not run here: {failed[name]}", last=True)
    return found, failed


def _parity(
    answers: np.ndarray, reference: np.ndarray, labels: np.ndarray, tolerance: float
) -> dict[str, Any]:
    """See `edgekd.results.DeviceParity`. Raises ValueError for outputs that cannot be compared."""
    import numpy as np

    if answers.shape != reference.shape:
        raise ValueError(f"gives outputs of shape {answers.shape}, expected {reference.shape}")
    if not np.isfinite(answers).all():
        raise ValueError("gives outputs that are not finite")
    difference = np.abs(answers.astype(np.float64) - reference).max()
    scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    found = {
        "samples": len(labels),
        "max_error": float(difference) / scale,
        "agreement": None,
        "accuracy": None,
        "accuracy_here": None,
        "tolerance": tolerance,
    }
    if labels.ndim == 1:
        there, here = answers.argmax(1), reference.argmax(1)
        found["agreement"] = float((there == here).mean())
        found["accuracy"] = float((there == labels).mean())
        found["accuracy_here"] = float((here == labels).mean())
    return found


def _parity_line(name: str, parity: dict[str, Any]) -> str:
    verdict = "as where it was made" if parity["max_error"] <= parity["tolerance"] else "DIFFERENT"
    text = (
        f"{name}: outputs {verdict} (largest error {parity['max_error']:.1e} of the largest output)"
    )
    if parity["agreement"] is None:
        return text
    return (
        f"{text}, top-1 agreement {parity['agreement']:.2%}, accuracy {parity['accuracy']:.2%} "
        f"(there {parity['accuracy_here']:.2%})"
    )


def _measured(
    plan: dict[str, Any], failed: dict[str, str], show: Callable[..., None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`collect`, again without a model that fails; such models are added to `failed`."""
    from .measure import MeasureError, collect

    def say(event: dict[str, Any]) -> None:
        width = "…" if event["width"] is None else f"±{event['width'] / 2:.1%}"
        names = ", ".join(event["models"])
        show(f"measuring {event['phase']} of {names}: {event['spent']:.0f} s, {width}")

    while True:
        try:
            result, samples = collect(plan, say)
        except MeasureError as error:
            failed[error.model] = _one_line(error).removeprefix(f"{error.model}: ")
            show(f"{error.model} cannot be measured: {failed[error.model]}", last=True)
            kept = [model for model in plan["models"] if model["id"] != error.model]
            plan = {**plan, "models": kept}
            continue
        show("", last=True)
        return result, samples


def _packed(samples: dict[str, np.ndarray]) -> dict[str, Any]:
    """By model and phase: base64 of every call's nanoseconds (int64), how many calls each round had,
    and how many rounds each launch.
    """
    import numpy as np

    packed = {}
    for name, seconds in samples.items():
        if name.endswith(("/rounds", "/launches", "/cpu")):
            continue
        rounds, launches = samples[f"{name}/rounds"], samples[f"{name}/launches"]
        first_calls = np.unique(rounds, return_index=True)[1]
        packed[name] = {
            "nanoseconds": base64.b64encode(
                np.round(seconds * 1e9).astype("<i8").tobytes()
            ).decode(),
            "rounds": np.bincount(rounds).tolist(),
            "launches": np.bincount(launches[first_calls]).tolist(),
        }
    return packed


def _one_line(error: Exception) -> str:
    """A runtime's own words, safe to print."""
    text = " ".join(str(error).split())
    return "".join(c for c in text if c.isprintable())[:_REASON] or type(error).__name__


class _Screen:
    """Progress on standard error: one line that changes on a terminal, one now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.every = 0.1 if self.terminal else 10.0
        self.shown = time.monotonic()

    def show(self, text: str, last: bool = False) -> None:
        if not last and time.monotonic() - self.shown < self.every:
            return
        self.shown = time.monotonic()
        if self.terminal:
            print(f"\r\x1b[K{text}", end="\n" if last and text else "", file=sys.stderr, flush=True)
        elif text:
            print(text, file=sys.stderr, flush=True)
