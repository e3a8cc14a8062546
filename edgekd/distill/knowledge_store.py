"""Teacher outputs per (sample, view), kept on disk: the teacher runs once, however many students.

A store holds one place of one teacher (its logits, or what passes a tap) in memory-mapped shards.
It is filled as batches ask for it. Every row carries a checksum, so a row that was half written
when something was killed is unknown, not wrong. Once a row is known it never changes: whoever asks
later, or at the same time in another process, gets the same bits.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.artifacts import atomic_path, disk_errors, read_json, sha256_json, write_json
from edgekd.config.schema import KnowledgeStorage
from edgekd.distill.method import Knowledge
from edgekd.errors import StageError, UsageError

Words = NDArray[np.uint16]
# (inputs, sample indices, view) → what the teacher says
Ask = Callable[[Tensor, Tensor, int], Knowledge]
FOLDER = ".knowledge"  # beside the runs
SHARD = 64 << 20  # bytes
RESIDENT = 1 << 30  # bytes of one view that may lie on a GPU
LOGITS = "logits"
# More classes than this, and only the largest logits are kept where all are too many: `top_k: auto`.
MANY_CLASSES, LARGEST = 1000, 100


class Codec(Protocol):
    """How one row is written; `words` of 16 bits each."""

    @property
    def words(self) -> int:
        """The length of a row."""

    def encode(self, values: Tensor) -> Words:
        """(n, …) float32 → (n, words)."""

    def decode(self, rows: Words) -> Tensor:
        """(n, words) → (n, …) float32, the same for the same words."""


@dataclass(frozen=True)
class Dense:
    """Every value of `shape`, as float16 or float32."""

    shape: tuple[int, ...]
    precision: Literal["f16", "f32"] = "f16"
    kind: str = "dense"

    @property
    def words(self) -> int:
        """One or two per value."""
        return math.prod(self.shape) * (1 if self.precision == "f16" else 2)

    def encode(self, values: Tensor) -> Words:
        """(n, *shape) → (n, words). Raises StageError for values beyond float16."""
        flat = values.reshape(len(values), -1).numpy()
        return _bits(flat, np.float16 if self.precision == "f16" else np.float32)

    def decode(self, rows: Words) -> Tensor:
        """(n, words) → (n, *shape)."""
        dtype = np.float16 if self.precision == "f16" else np.float32
        values = np.ascontiguousarray(rows).view(dtype).astype(np.float32)
        return torch.from_numpy(values.reshape(len(rows), *self.shape))


@dataclass(frozen=True)
class TopK:
    """The k largest logits, and the log-sum-exp of the rest, which share it equally when read.

    At T = 1 the softmax of what is read has the k largest probabilities right, and the rest's sum.
    """

    classes: int
    k: int
    kind: str = "top-k"

    @property
    def words(self) -> int:
        """Value and class (two words) of each of the k, and two for the rest."""
        return 3 * self.k + 2

    def encode(self, values: Tensor) -> Words:
        """(n, classes) → (n, words)."""
        top, which = values.topk(self.k, dim=1)
        rest = values.scatter(1, which, -torch.inf).logsumexp(1, keepdim=True)
        return np.concatenate(
            [
                _bits(top.numpy(), np.float16),
                which.numpy().astype(np.uint32).view(np.uint16),
                rest.numpy().astype(np.float32).view(np.uint16),
            ],
            axis=1,
        )

    def decode(self, rows: Words) -> Tensor:
        """(n, words) → (n, classes)."""
        k = self.k
        rows = np.ascontiguousarray(rows)
        top = torch.from_numpy(rows[:, :k].copy().view(np.float16).astype(np.float32))
        which = torch.from_numpy(rows[:, k : 3 * k].copy().view(np.uint32).astype(np.int64))
        rest = torch.from_numpy(rows[:, 3 * k :].copy().view(np.float32))
        equal = rest - math.log(self.classes - k)
        return equal.expand(-1, self.classes).scatter(1, which, top)


class KnowledgeStore:
    """Rows of one place for (views, samples).

    `identity` is everything they depend on (teacher weights, preprocessing, data, view policy,
    place): its hash names the store's folder, so that a store made from anything else is never read.
    Raises UsageError when the folder says that it is something else.
    """

    def __init__(
        self, root: Path, identity: dict[str, Any], *, views: int, samples: int, codec: Codec
    ) -> None:
        self.views, self.samples, self.codec = views, samples, codec
        self.folder = root / sha256_json({"identity": identity, "codec": _plain(codec)})[:32]
        about = {"identity": identity, "codec": _plain(codec), "views": views, "samples": samples}
        there = (self.folder / "store.json").exists()
        # What may not be written can still be read.
        self._mode: Literal["r", "r+"] = (
            "r" if there and not os.access(self.folder, os.W_OK) else "r+"
        )
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Held while the store is open, so that nobody prunes it.
            self._use = self._in_use()
            fcntl.flock(self._use, fcntl.LOCK_SH)
            if not there:
                with self._writing():
                    if not (self.folder / "store.json").exists():
                        write_json(self.folder / "store.json", about)
        if read_json(self.folder / "store.json") != about:
            raise UsageError(
                "this knowledge store was made for something else",
                where=str(self.folder),
                fix="delete this folder; it is filled again",
            )
        self._row = codec.words + 2
        self._per_shard = max(1, min(samples, SHARD // (2 * self._row)))
        self._weights = np.random.default_rng(0).integers(0, 1 << 32, codec.words, np.uint64) | 1
        self._shards: dict[tuple[int, int], Words] = {}
        # Rows whose checksum this process has already found right.
        self._sound = np.zeros((views, samples), np.bool_)

    def _in_use(self) -> IO[bytes]:
        lock = self.folder / "use.lock"
        if self._mode == "r+":
            return lock.open("ab")
        return (lock if lock.exists() else self.folder / "store.json").open("rb")

    def close(self) -> None:
        """Done with it: from now on it may be pruned."""
        self._shards.clear()
        self._use.close()

    @property
    def size(self) -> int:
        """Bytes on disk when everything is known."""
        return 2 * self._row * self.samples * self.views

    def check(self) -> None:
        """Raises StageError for a shard that was cut short or changed its size; no row is read."""
        for view in range(self.views):
            for number in range(-(-self.samples // self._per_shard)):
                self._shard(view, number)

    def read(self, rows: NDArray[np.int64], view: int) -> Tensor | None:
        """The values (n, …) of the samples `rows`, or None unless all of them are known."""
        words = np.empty((len(rows), self.codec.words), np.uint16)
        for number, inside, at in self._by_shard(rows):
            shard = self._shard(view, number)
            if shard is None:
                return None
            found = shard[at]
            if not self._sound[view, rows[inside]].all():
                if not self._right(found).all():
                    return None
                self._sound[view, rows[inside]] = True
            words[inside] = found[:, : self.codec.words]
        return self.codec.decode(words)

    def keep(self, rows: NDArray[np.int64], view: int, values: Tensor) -> Tensor:
        """Write the rows that are not known yet; what is known of all of them then (n, …).

        `values` (n, …) float32 on the CPU, all finite.
        """
        encoded = self.codec.encode(values)
        with self._writing():
            for number, inside, at in self._by_shard(rows):
                shard = self._shard(view, number, create=True)
                assert shard is not None
                missing = ~self._right(shard[at])
                new = encoded[inside][missing]
                shard[at[missing]] = np.concatenate([new, self._checksum(new)], axis=1)
        known = self.read(rows, view)
        assert known is not None
        return known

    def rounded(self, values: Tensor) -> Tensor:
        """Values (n, …) as they are once they were kept: float32 on the CPU."""
        return self.codec.decode(self.codec.encode(values.float().cpu()))

    def known(self, rows: NDArray[np.int64], view: int) -> NDArray[np.bool_]:
        """Which of the samples `rows` (n,) are known."""
        result = np.zeros(len(rows), np.bool_)
        for number, inside, at in self._by_shard(rows):
            shard = self._shard(view, number)
            if shard is not None:
                result[inside] = self._right(shard[at])
        return result

    @property
    def filled(self) -> float:
        """The share of (sample, view) pairs that are known, in [0, 1]."""
        pieces = np.array_split(np.arange(self.samples), -(-self.samples // 4096))
        counts = (int(self.known(p, view).sum()) for view in range(self.views) for p in pieces)
        return sum(counts) / (self.views * self.samples)

    def _by_shard(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64] | slice, NDArray[np.int64]]]:
        """(number of the shard, which of `rows` lie in it, where in it they lie)."""
        shards = rows // self._per_shard
        if len(rows) and (shards == shards[0]).all():
            yield int(shards[0]), slice(None), rows % self._per_shard
            return
        for number in np.unique(shards):
            (inside,) = np.nonzero(shards == number)
            yield int(number), inside, rows[inside] % self._per_shard

    def _shard(self, view: int, number: int, *, create: bool = False) -> Words | None:
        """The shard (rows, words and checksum), or None where there is none yet."""
        if (view, number) not in self._shards:
            path = self.folder / f"{view:03}-{number:05}.bin"
            shape = (min(self._per_shard, self.samples - number * self._per_shard), self._row)
            if not path.exists():
                if not create:
                    return None
                with disk_errors(path):
                    _allocate(path, 2 * math.prod(shape))
            if path.stat().st_size != 2 * math.prod(shape):
                raise StageError(
                    "this shard of a knowledge store has another size than it was made with",
                    where=str(path),
                    fix="delete its folder; it is filled again",
                )
            self._shards[view, number] = np.memmap(path, np.uint16, self._mode, shape=shape)
        return self._shards[view, number]

    def _checksum(self, words: Words) -> Words:
        """(n, 2) words; those of a row of zeros are not zero."""
        sums = (words.astype(np.uint64) @ self._weights + np.uint64(0x9E3779B9)).astype(np.uint32)
        return sums[:, None].view(np.uint16)

    def _right(self, rows: Words) -> NDArray[np.bool_]:
        words, checksum = rows[:, : self.codec.words], rows[:, self.codec.words :]
        right: NDArray[np.bool_] = (self._checksum(words) == checksum).all(axis=1)
        return right

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One process at a time."""
        with (self.folder / "write.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class StoredKnowledge:
    """What a teacher says of a batch: read where it is known, asked and kept where it is not.

    Called with (inputs, sample indices, view), as the trainer does; so is `ask`, which runs the
    teacher, without gradients. `example` is its answer to any batch, and says what there is to keep.
    Features are kept while all of it fits in `config.limit`; otherwise the teacher is always asked.
    `rows` are the samples that will be asked about; `every_logit`: a method needs them all.
    """

    def __init__(
        self,
        ask: Ask,
        root: Path,
        identity: dict[str, Any],
        config: KnowledgeStorage,
        *,
        views: int,
        samples: int,
        rows: NDArray[np.int64],
        example: Knowledge,
        resident: bool | None = None,
        every_logit: bool = False,
    ) -> None:
        self.ask, self.rows, self.resident = ask, rows, resident
        self.stores: dict[str, KnowledgeStore] = {}
        self._on_device: dict[tuple[str, int], Tensor] = {}
        shape = tuple(example.logits.shape[1:])
        codecs = {LOGITS: logits_codec(shape, config, samples * views, every_logit)}
        for tap, value in example.features.items():
            codecs[tap] = Dense(tuple(value.shape[1:]), config.precision)
        self.size = sum(2 * (codec.words + 2) for codec in codecs.values()) * samples * views
        if not config.store or self.size > config.limit_bytes:
            return
        for place, codec in codecs.items():
            about = {**identity, "place": place}
            self.stores[place] = KnowledgeStore(
                root, about, views=views, samples=samples, codec=codec
            )

    def __call__(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """The knowledge of one batch of one view; `inputs` (n, …) is that view of `indices` (n,)."""
        if not self.stores:
            return self.ask(inputs, indices, view).float()
        rows = indices.cpu().numpy()
        known = _whole({place: self._found(place, rows, view, inputs) for place in self.stores})
        if known is None:
            # The whole batch, even when only a part is missing: a batch of another size
            # may differ in the last bit, and a resumed training must not.
            answer = self.ask(inputs, indices, view).float()
            given = {LOGITS: answer.logits, **answer.features}
            # Rounded as it is when it is read, so that a resumed training is the same.
            kept = {
                place: store.keep(rows, view, given[place].cpu()).to(inputs.device)
                for place, store in self.stores.items()
            }
            known = Knowledge(kept.pop(LOGITS), kept)
        return known

    def rounded(self, knowledge: Knowledge) -> Knowledge:
        """The same with the logits as they are once they were kept."""
        return replace(knowledge, logits=self.stores[LOGITS].rounded(knowledge.logits))

    def known(self, rows: NDArray[np.int64], view: int) -> Knowledge | None:
        """What is stored of these samples, without asking the teacher; None unless it is all of it."""
        return _whole({place: store.read(rows, view) for place, store in self.stores.items()})

    def _found(
        self, place: str, rows: NDArray[np.int64], view: int, inputs: Tensor
    ) -> Tensor | None:
        """From the device, once a whole view lies there; from the store otherwise."""
        resident = inputs.is_cuda if self.resident is None else self.resident
        store = self.stores[place]
        if not resident or store.size // store.views > RESIDENT:
            value = store.read(rows, view)
            return None if value is None else value.to(inputs.device)
        if (place, view) not in self._on_device:
            value = store.read(self.rows, view)
            if value is None:
                return None
            whole = torch.empty(store.samples, *value.shape[1:])
            whole[torch.from_numpy(self.rows)] = value
            self._on_device[place, view] = whole.to(inputs.device)
        return self._on_device[place, view][torch.from_numpy(rows).to(inputs.device)]


def _whole(found: dict[str, Tensor | None]) -> Knowledge | None:
    """Knowledge by place, unless some of it is missing."""
    values = {place: value for place, value in found.items() if value is not None}
    if not found or len(values) < len(found):
        return None
    return Knowledge(values.pop(LOGITS), values)


def logits_codec(
    shape: tuple[int, ...], config: KnowledgeStorage, count: int, every_logit: bool = False
) -> Codec:
    """Dense, or the largest ones of many classes where `count` dense rows would be too much.

    Logits of pixels are always dense, and so are those of which methods need every one.
    """
    k, classes = config.top_k, shape[0]
    if k == "auto":
        dense = 2 * (Dense(shape, config.precision).words + 2) * count
        many = classes > MANY_CLASSES and dense > config.limit_bytes
        k = LARGEST if many and not every_logit else None
    if k is None or k >= classes or len(shape) > 1:
        return Dense(shape, config.precision)
    return TopK(classes, k)


def codec_from(about: dict[str, Any]) -> Codec:
    """Back from a store.json."""
    if about["kind"] == "top-k":
        return TopK(about["classes"], about["k"])
    return Dense(tuple(about["shape"]), about["precision"])


def _plain(codec: Codec) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(codec).items()}  # type: ignore[call-overload]


def _bits(values: NDArray[np.float32], dtype: type[np.floating[Any]]) -> Words:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values.astype(dtype))
    if not np.isfinite(rounded).all():
        raise StageError(
            f"the teacher gives {np.abs(values).max():g}, which {np.dtype(dtype).name} cannot hold",
            where="distill.knowledge",
            fix="check the teacher's weights and inputs, or set distill.knowledge.precision=f32",
        )
    return rounded.view(np.uint16)


def _allocate(path: Path, size: int) -> None:
    """A file of zeros whose blocks are reserved: a full disk shows now, not as SIGBUS later."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
