"""The knowledge stores beside a folder of runs: listed, checked against their teachers, deleted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.artifacts import disk_errors, read_json, sha256_json
from edgekd.distill.knowledge_store import FOLDER, LOGITS, KnowledgeStore, codec_from
from edgekd.errors import StageError, UsageError
from edgekd.pipeline.run import Run

if TYPE_CHECKING:
    from edgekd.distill.revisit import Asked


@dataclass(frozen=True)
class StoredPlace:
    """One store on disk, and the names of the runs here whose teacher it is of.

    `about` is its store.json; empty where that cannot be used, and `problem` says why.
    """

    folder: Path
    about: dict[str, Any]
    runs: tuple[str, ...]
    problem: str | None = None

    @cached_property
    def damage(self) -> str | None:
        """Why it cannot be read, in one line; None where it can."""
        if self.problem is not None:
            return self.problem
        try:
            with contextlib.closing(self.open()) as store:
                store.check()
        except StageError as error:
            return f"{error.where}: {error.what}"
        return None

    def open(self) -> KnowledgeStore:
        """To read. Raises UsageError when it is not what its name says."""
        return KnowledgeStore(
            self.folder.parent,
            self.about["identity"],
            views=self.about["views"],
            samples=self.about["samples"],
            codec=codec_from(self.about["codec"]),
        )

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def describe(self) -> dict[str, Any]:
        """For people and programs; what cannot be told of a damaged one is None."""
        filled = None
        if self.damage is None:
            with contextlib.closing(self.open()) as store:
                filled = store.filled
        return {
            "name": self.folder.name,
            "place": self.about.get("identity", {}).get("place"),
            "views": self.about.get("views"),
            "samples": self.about.get("samples"),
            "filled": filled,
            "bytes": self.bytes,
            "runs": list(self.runs),
            "damage": self.damage,
        }


def stores(folder: Path) -> list[StoredPlace]:
    """Every store beside the runs in `folder`, damaged ones too; a run folder itself will do.

    Raises UsageError for one that may not be read.
    """
    root = _beside(folder)
    teachers: dict[str, list[str]] = {}
    for manifest in sorted(root.parent.glob("*/run.json")):
        with contextlib.suppress(UsageError):
            stages = Run(manifest.parent).manifest.stages
            # Schemes make teachers, too.
            for record in (stages[name] for name in ("teacher", "distill") if name in stages):
                for artifact in record.artifacts.values():
                    teachers.setdefault(artifact.sha256, []).append(manifest.parent.name)
    found = []
    # Shards without a store.json are of a store that lost it.
    folders = {path.parent for name in ("store.json", "*.bin") for path in root.glob(f"*/{name}")}
    for path in sorted(folder / "store.json" for folder in folders):
        try:
            about = _description(path)
        except UsageError as error:
            if path.exists() and not os.access(path, os.R_OK):
                raise  # not damaged: somebody else's
            found.append(StoredPlace(path.parent, {}, (), f"{error.where}: {error.what}"))
            continue
        texts = set(_texts(about["identity"]))
        runs = sorted({run for digest in texts & teachers.keys() for run in teachers[digest]})
        found.append(StoredPlace(path.parent, about, tuple(runs)))
    return found


def _description(path: Path) -> dict[str, Any]:
    """A store.json. Raises UsageError for one that says something else than its folder's name."""
    about = read_json(path)
    try:
        name = sha256_json({"identity": about["identity"], "codec": about["codec"]})[:32]
        sound = name == path.parent.name and all(
            isinstance(number, int) and number > 0
            for number in (about["views"], about["samples"], codec_from(about["codec"]).words)
        )
        sound = sound and isinstance(about["identity"]["place"], str)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UsageError("this knowledge store was made for something else", where=str(path.parent))
    return dict(about)


@dataclass(frozen=True)
class Verified:
    """A random sample of one place, asked again: `same` up to rounding; or why it cannot be."""

    place: str
    rows: int
    difference: float
    largest: float
    same: bool
    damage: str | None = None
    taught: str | None = None  # who learned from it, where that is not the run's own teacher


def verify(path: Path, samples: int, seed: int) -> list[Verified]:
    """Recompute up to `samples` random known rows of every store that the run at `path` reads.

    Those of its own teacher, and of what its scheme made to teach others. A damaged one is not the same,
    nor is one of which nobody can tell whose it is. Other batches differ in the last bits, bf16 in more.
    Raises UsageError where it has none.
    """
    from edgekd.distill.revisit import Finished
    from edgekd.pipeline.line import config_of

    run = Run.open(path)
    workshop = Finished(run, *config_of(run))
    if workshop.teacher.teacher.keeps:
        raise UsageError(
            "this teacher is behind a server, which checking would pay for",
            where=str(path),
            fix="a few of its answers are asked for again whenever a distillation starts",
        )
    random, beside = np.random.default_rng(seed), stores(path)
    results = [
        Verified("a store", 0, 0.0, 0.0, False, damage=stored.problem)
        for stored in beside
        if stored.problem is not None
    ]
    for asked in workshop.teachers():
        mine = [_plain(workshop.identity(asked.known, asked.views, p)) for p in ("f32", "bf16")]
        for stored in beside:
            identity = dict(stored.about.get("identity", {}))
            place = identity.pop("place", None)
            if identity not in mine:
                continue
            if stored.damage is not None:
                result = Verified(place, 0, 0.0, 0.0, False, stored.damage, asked.taught)
            else:
                result = _asked_again(stored, asked, samples, random)
            results.append(result)
    if not results:
        raise UsageError(
            "no knowledge of this run's teacher is kept",
            where=str(path),
            fix="distill first; runs whose teacher runs in every step keep none",
        )
    return results


def _asked_again(
    stored: StoredPlace, asked: Asked, samples: int, random: np.random.Generator
) -> Verified:
    import torch

    from edgekd.distill.compute import autocast
    from edgekd.distill.workshop import seen
    from edgekd.results import Computing

    place, precision = stored.about["identity"]["place"], stored.about["identity"]["precision"]
    taps = () if place == LOGITS else (place,)
    worst, largest, count = 0.0, 0.0, 0
    with contextlib.closing(stored.open()) as store:
        for view in range(store.views):
            rows = random.permutation(asked.views.dataset.train)
            rows = rows[store.known(rows, view)][: -(-samples // store.views)]
            if not len(rows):
                continue
            kept = store.read(rows, view)
            assert kept is not None
            with autocast(Computing(precision=precision)):
                ask = seen(asked.known.teacher, taps)
                said = ask(asked.views.batch(rows, view), torch.from_numpy(rows), view)
            again = store.rounded(said.logits if place == LOGITS else said.features[place])
            worst = max(worst, float((again - kept).abs().max()))
            largest = max(largest, float(kept.abs().max()))
            count += len(rows)
    tolerance = 0.05 if precision == "bf16" else 0.005
    same = worst <= tolerance * largest
    return Verified(place, count, worst, largest, same, taught=asked.taught)


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def prune(folder: Path, *, everything: bool) -> tuple[int, int]:
    """Delete stores whose teacher is in no run here and damaged ones, or all.

    (bytes freed, stores in use)
    """
    freed = used = 0
    for stored in stores(folder):
        if stored.runs and stored.damage is None and not everything:
            continue
        with disk_errors(stored.folder), (stored.folder / "use.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                used += 1
                continue
            freed += stored.bytes
            shutil.rmtree(stored.folder)
    return freed, used


def _beside(folder: Path) -> Path:
    """The folder of stores that belongs to a folder of runs, or to a run."""
    if not folder.is_dir():
        raise UsageError("no such folder", where=str(folder))
    run = folder.absolute()
    return (run.parent if (run / "run.json").exists() else run) / FOLDER


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
