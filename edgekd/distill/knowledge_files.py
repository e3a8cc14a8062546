"""The knowledge stores beside a folder of runs: listed, checked against their teachers, deleted."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.artifacts import read_json, sha256_json
from edgekd.distill.knowledge_store import FOLDER, LOGITS, KnowledgeStore, codec_from
from edgekd.errors import UsageError
from edgekd.pipeline.run import Run


@dataclass(frozen=True)
class StoredPlace:
    """One store on disk, and the names of the runs here whose teacher it is of."""

    folder: Path
    about: dict[str, Any]
    runs: tuple[str, ...]

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
        """For people and programs."""
        return {
            "name": self.folder.name,
            "place": self.about["identity"]["place"],
            "views": self.about["views"],
            "samples": self.about["samples"],
            "filled": self.open().filled,
            "bytes": self.bytes,
            "runs": list(self.runs),
        }


def stores(folder: Path) -> list[StoredPlace]:
    """Every store beside the runs in `folder`; a run folder itself will do.

    Raises UsageError for a store whose description was changed.
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
    for path in sorted(root.glob("*/store.json")):
        about = read_json(path)
        name = sha256_json({"identity": about.get("identity"), "codec": about.get("codec")})
        if not path.parent.name == name[:32]:
            raise UsageError(
                "this knowledge store was made for something else",
                where=str(path.parent),
                fix="delete this folder; it is filled again",
            )
        texts = set(_texts(about["identity"]))
        runs = sorted({run for digest in texts & teachers.keys() for run in teachers[digest]})
        found.append(StoredPlace(path.parent, about, tuple(runs)))
    return found


@dataclass(frozen=True)
class Verified:
    """A random sample of one place, asked again: `same` up to rounding."""

    place: str
    rows: int
    difference: float
    largest: float
    same: bool


def verify(path: Path, samples: int, seed: int) -> list[Verified]:
    """Recompute up to `samples` random known rows of every store that the run at `path` reads.

    Raises UsageError where it has none. Other batches differ in the last bits, bf16 in more.
    """
    import torch

    from edgekd.data.resolve import load
    from edgekd.data.views import Views
    from edgekd.distill.compute import autocast
    from edgekd.distill.workshop import seen, store_identity, teacher_identity
    from edgekd.pipeline.line import config_of
    from edgekd.results import Computing
    from edgekd.teachers.teacher import load as open_teacher

    run = Run.open(path)
    config, base = config_of(run)
    teacher = teacher_identity(run)
    mine = [store_identity(teacher, config, base, p) for p in ("f32", "bf16")]
    dataset = load(config.data, config.data.seed, base)
    views = Views(dataset, config.data.augment, config.data.seed)
    opened = open_teacher(run, base, dataset)
    if opened.keeps:
        raise UsageError(
            "this teacher is behind a server, which checking would pay for",
            where=str(path),
            fix="a few of its answers are asked for again whenever a distillation starts",
        )
    random, results = np.random.default_rng(seed), []
    for stored in stores(path):
        identity = dict(stored.about["identity"])
        place = identity.pop("place")
        if identity not in mine:
            continue
        store, precision = stored.open(), identity["precision"]
        worst, largest, count = 0.0, 0.0, 0
        for view in range(store.views):
            rows = random.permutation(dataset.train)
            rows = rows[store.known(rows, view)][: -(-samples // store.views)]
            if not len(rows):
                continue
            kept = store.read(rows, view)
            assert kept is not None
            taps = () if place == LOGITS else (place,)
            with autocast(Computing(precision=precision)):
                said = seen(opened, taps)(views.batch(rows, view), torch.from_numpy(rows), view)
            again = store.rounded(said.logits if place == LOGITS else said.features[place])
            worst = max(worst, float((again - kept).abs().max()))
            largest = max(largest, float(kept.abs().max()))
            count += len(rows)
        tolerance = 0.05 if precision == "bf16" else 0.005
        results.append(Verified(place, count, worst, largest, worst <= tolerance * largest))
    if not results:
        raise UsageError(
            "no knowledge of this run's teacher is kept",
            where=str(path),
            fix="distill first; runs whose teacher runs in every step keep none",
        )
    return results


def prune(folder: Path, *, everything: bool) -> tuple[int, int]:
    """Delete stores whose teacher is in no run here, or all. (bytes freed, stores in use)."""
    freed = used = 0
    for stored in stores(folder):
        if stored.runs and not everything:
            continue
        with (stored.folder / "use.lock").open("a") as lock:
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
