"""Gray-box: `oip://host:port/model`, a model server that speaks the Open Inference Protocol v2 (REST).

KServe, Triton, OpenVINO Model Server, MLServer, TorchServe; `oips://` is the same over TLS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field

from edgekd.artifacts import read_json, sha256_file, write_json
from edgekd.errors import StageError, UsageError
from edgekd.registry import suggestion
from edgekd.results import ModelCard
from edgekd.teachers.collect import ask_all
from edgekd.teachers.http import Client, Unreachable, check_url
from edgekd.teachers.kinds.onnx import LEAST, check_answers, log_probabilities
from edgekd.teachers.kinds.records import Gives, provided, save_answers
from edgekd.teachers.labels import reordering
from edgekd.teachers.teacher import Options, Teacher, check_methods, teacher, write_card
from edgekd.teachers.teacher import options as parsed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.data.views import Views
    from edgekd.distill.knowledge_store import KnowledgeStore
    from edgekd.distill.method import Knowledge
    from edgekd.pipeline.stages import Context
    from edgekd.progress import Progress

_FLOATS = ("FP16", "FP32", "FP64", "BF16")
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
# Stored answers that are asked for again when a collection goes on, to see whether they still hold.
_CHECKED = 8
# How far an answer may move, as a share of the largest logit: servers batch, and sum in any order.
_TOLERANCE = 1e-3


class OipOptions(Options):
    """`teacher.args` of a model server."""

    input: str | None = Field(None, description="Name of the input; null: the only one.")
    output: str | None = Field(
        None, description="Name of the output; null: the only one, or logits."
    )
    gives: Gives | None = Field(
        None,
        description="What the output is; null: logits, or labels where it is integers or text.",
    )
    classes: list[str] | None = Field(
        None,
        description="Names of its outputs in order; null: what the server says, else the data's.",
    )
    batch: int = Field(32, ge=1, le=4096, description="Samples per request.")
    concurrency: int = Field(4, ge=1, le=256, description="Requests under way at once.")
    timeout: float = Field(30.0, gt=0, description="Seconds to connect, and to wait for an answer.")
    retries: int = Field(5, ge=0, le=100, description="Of what may pass: no answer, 429, 5xx.")
    pause: float = Field(
        0.5, ge=0, description="Seconds before the first retry; doubled every time."
    )
    ca: str | None = Field(
        None, description="File of the certificates to trust; null: the system's."
    )
    key: str | None = Field(None, description="Environment variable that holds a bearer token.")
    changed: Literal["refuse", "warn"] = Field(
        "refuse", description="What to do when it answers otherwise than it did before."
    )


class _Remote(Teacher):
    """`model.server.json`: what the server said of the model; `answers.npz`: those to the held-out splits.

    Every answer is kept in the knowledge store beside the runs, so that none is paid for twice.
    """

    keeps = True
    Options: ClassVar[type[Options] | None] = OipOptions

    def __init__(self, folder: Path, base: Path, dataset: Dataset) -> None:
        import numpy as np

        self._about = read_json(folder / "model.server.json")
        self._identity = {"teacher": sha256_file(folder / "model.server.json"), "place": "logits"}
        self._root = _beside_runs(folder)
        self._dataset, self._base = dataset, base
        # How it is asked may be otherwise by now: see `prepare`.
        card = ModelCard.read(folder / "model.json")
        self.options: OipOptions = parsed(type(self), card.args)
        self.provides = provided(self._about["gives"])
        self._client: Client | None = None
        self._plain = self._store({"views": "plain"}, 1)
        self._views = self._plain
        self._answers = np.zeros((0, 0), np.float32)
        if (folder / "answers.npz").is_file():
            with np.load(folder / "answers.npz", allow_pickle=False) as archive:
                self._answers = archive["logits"]

    @classmethod
    def check(cls, model: str, args: Any) -> None:
        """An address with a model's name and no secret."""
        check_url(model, (cls.kind,))
        if not urlsplit(model).path.strip("/"):
            raise ValueError(f"names no model: should be like {cls.kind}://HOST:PORT/MODEL")

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """The address and what of the options its answers depend on; the server is not asked."""
        options: OipOptions = parsed(cls, config.teacher.args)
        return {"model": config.teacher.model, "options": _lasting(options)}

    @classmethod
    def make(cls, context: Context) -> None:
        """Ask what the model is, then for its answers to the validation and test splits."""
        from edgekd.pipeline.stages import data_part

        config, dataset = context.config.teacher, context.dataset
        options: OipOptions = parsed(cls, config.args)
        client = _client(config.model, options, context.base)
        metadata = _metadata(client, config.model)
        given, taken = _choose(metadata, options, dataset, config.model)
        names = options.classes or _class_names(taken)
        data = data_part(context.config, context.base)
        for key in ("run_seed", "augment", "seed", "validation", "test", "limit"):
            data.pop(key, None)
        write_json(
            context.folder / "model.server.json",
            {
                "model": config.model,
                "options": _lasting(options),
                "metadata": metadata,
                "input": given["name"],
                "datatype": given["datatype"],
                "output": taken["name"],
                "gives": options.gives or _gives(taken),
                "numbered": taken["datatype"] != "BYTES",
                "classes": names,
                "order": reordering(names, dataset.classes, where=f"teacher.model {config.model}"),
                "data": data,
            },
        )
        write_card(context, context.folder, parameters=None)
        opened = cls(context.folder, context.base, dataset)
        methods = context.config.distill.methods.entries
        check_methods(methods, opened.provides, who=config.model)
        import numpy as np

        held_out = np.concatenate([dataset.validation, dataset.test])
        opened._collect(opened._plain, [(held_out, 0)], dataset.tensor, context.progress)
        answers = opened._plain.read(held_out, 0)
        assert answers is not None
        save_answers(context.folder, dataset, held_out, answers.numpy(), opened._about["gives"])

    @classmethod
    def load(cls, folder: Path, base: Path, dataset: Dataset) -> Teacher:
        """What was recorded of it; nobody is asked before something is missing."""
        return cls(folder, base, dataset)

    def prepare(self, context: Context, views: Views, *, leads: bool = True) -> None:
        """Every view of every training sample that is not known yet."""
        from edgekd.pipeline.stages import unlabelled_part

        self.options = parsed(type(self), context.config.teacher.args)
        about: dict[str, Any] = {"views": "plain"}
        if views.count > 1:
            data = context.config.data
            about = {"views": data.augment.model_dump(mode="json"), "seed": data.seed}
            self._views = self._store(about, views.count)
        more = unlabelled_part(context.config, context.base)
        if more is not None:
            before, about = self._views, {**about, "unlabelled": more}
            self._views = self._store(about, views.count, len(views.dataset.labels))
            if leads:
                _copy(before, self._views)
        if not leads:
            return
        wanted = [(views.dataset.train, view) for view in range(views.count)]
        self._collect(self._views, wanted, None, context.progress, views)

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """From what was collected; the server is asked for what was not."""
        from edgekd.distill.method import Knowledge

        found = self._views.read(indices.cpu().numpy(), view)
        logits = self._ask(inputs.cpu()) if found is None else found
        return Knowledge(logits.to(inputs.device))

    def answers(self, dataset: Dataset, indices: np.ndarray) -> np.ndarray:
        """From what was collected, NaN where it was not asked."""
        import numpy as np

        found = np.full((len(indices), len(dataset.classes)), np.nan, np.float32)
        if len(self._answers):
            found[:] = self._answers[indices]
        known = self._plain.known(indices, 0)
        stored = self._plain.read(indices[known], 0)
        if stored is not None:
            found[known] = stored.numpy()
        return found

    def _store(
        self, about: dict[str, Any], views: int, samples: int | None = None
    ) -> KnowledgeStore:
        from edgekd.distill.knowledge_store import Dense, KnowledgeStore

        return KnowledgeStore(
            self._root,
            self._identity | about,
            views=views,
            samples=samples or len(self._dataset.labels),
            codec=Dense((len(self._dataset.classes),), "f32"),
        )

    def _collect(
        self,
        store: KnowledgeStore,
        wanted: list[tuple[np.ndarray, int]],
        tensor: Any,
        progress: Progress,
        views: Views | None = None,
    ) -> None:
        """Fill the store with (samples, view) pairs; what is known is only checked, a little."""
        total = sum(len(rows) for rows, _ in wanted)
        known = sum(int(store.known(rows, view).sum()) for rows, view in wanted)
        make = (lambda rows, view: tensor(rows)) if views is None else views.batch
        if known:
            self._check_unchanged(store, wanted, make, progress, complete=known == total)
        if known == total:
            return
        client = self._connected()
        with progress.task("ask the teacher", total, known) as task:

            def questions() -> Iterator[tuple[np.ndarray, int]]:
                for rows, view in wanted:
                    missing = rows[~store.known(rows, view)]
                    for first in range(0, len(missing), self.options.batch):
                        yield missing[first : first + self.options.batch], view

            def ask(question: tuple[np.ndarray, int]) -> Tensor:
                return self._ask(make(*question))

            for (rows, view), logits in ask_all(
                questions(), ask, concurrency=self.options.concurrency, stop=client.stop
            ):
                store.keep(rows, view, logits)
                task.advance(len(rows), requests=str(client.requests))

    def _check_unchanged(
        self,
        store: KnowledgeStore,
        wanted: list[tuple[np.ndarray, int]],
        make: Any,
        progress: Progress,
        *,
        complete: bool,
    ) -> None:
        """Ask for a few stored answers again. Raises StageError when they are others now."""
        import numpy as np

        rows, view = next((r[store.known(r, v)], v) for r, v in wanted if store.known(r, v).any())
        rows = rows[np.linspace(0, len(rows) - 1, min(_CHECKED, len(rows))).astype(int)]
        try:
            said = self._metadata_change()
            now = self._ask(make(rows, view)).numpy()
        except Unreachable as error:
            if not complete:
                raise
            progress.say(f"  note: {error.what}; all of its answers are known from before")
            return
        before = store.read(rows, view)
        assert before is not None
        then = before.numpy()
        apart = np.abs(now - then).max(axis=1) > _TOLERANCE * np.abs(then).max()
        if not apart.any() and said is None:
            return
        problem = (
            f"the teacher has changed: {int(apart.sum())} of {len(rows)} answers that were asked for "
            f"again are others now, by up to {np.abs(now - then).max():.3g}"
            if apart.any()
            else f"the teacher has changed: {said}"
        )
        if self.options.changed == "warn":
            progress.say(f"  warning: {problem}")
            return
        raise StageError(
            problem,
            where=self._about["model"],
            fix=f"to ask the new one about everything, delete {store.folder} and run the teacher stage "
            "with --force; to mix their answers, set teacher.args: {changed: warn}",
        )

    def _metadata_change(self) -> str | None:
        now, then = _metadata(self._connected(), self._about["model"]), self._about["metadata"]
        keys = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
        texts = [f"{key} is {now.get(key)}, it was {then.get(key)}" for key in keys]
        return "; ".join(texts)[:300] or None

    def _connected(self) -> Client:
        if self._client is None:
            self._client = _client(self._about["model"], self.options, self._base)
        return self._client

    def _ask(self, inputs: Tensor) -> Tensor:
        """One request: logits (n, classes) in the data's order."""
        import torch

        about = self._about
        body = {
            "inputs": [
                {
                    "name": about["input"],
                    "shape": list(inputs.shape),
                    "datatype": about["datatype"],
                    "data": inputs.flatten().tolist(),
                }
            ],
            "outputs": [{"name": about["output"]}],
        }
        answer = self._connected().post(f"{_path(about['model'])}/infer", body)
        logits = self._logits(answer, len(inputs))
        return torch.from_numpy(logits)

    def _logits(self, answer: Any, count: int) -> np.ndarray:
        import numpy as np

        about, classes = self._about, self._dataset.classes
        where = about["model"]
        try:
            outputs = {output["name"]: output for output in answer["outputs"]}
            output = outputs[about["output"]]
            values = np.array(output["data"], dtype=object).reshape(output["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise StageError(
                f"the server's answer has no output {about['output']!r} of the shape that it says "
                f"({type(error).__name__}: {str(error)[:100]})",
                where=where,
            ) from None
        if about["gives"] == "labels":
            texts = [str(value) for value in values.reshape(-1)]
            if about["numbered"]:
                names = dict(enumerate(about["classes"] or classes))
                texts = [names.get(int(text), text) if text.isdigit() else text for text in texts]
            return _one_hot(texts, classes, count, where)
        try:
            logits = values.astype(np.float32)
        except (TypeError, ValueError):
            raise StageError("the server's answer holds what is no number", where=where) from None
        check_answers(logits, (count, len(classes)), where=where)
        if about["gives"] == "probabilities":
            off = (logits < -LEAST).any(axis=1) | (np.abs(logits.sum(axis=1) - 1) > 0.02)
            if off.any():
                raise StageError(
                    f"{int(off.sum())} of {count} answers are no probabilities", where=where,
                    fix="set teacher.args: {gives: logits} if they are logits",
                )  # fmt: skip
            logits = log_probabilities(logits)
        elif self.options.gives is None and _are_probabilities(logits):
            raise UsageError(
                "its outputs are between 0 and 1 and sum to 1: are they probabilities?",
                where=f"teacher.model {where}",
                fix="say which with teacher.args: {gives: probabilities} or {gives: logits}",
            )
        order = about["order"]
        return np.ascontiguousarray(logits if order is None else logits[:, order])


@teacher("oip", transparency="gray-box", provides={"logits", "probabilities", "labels"})
class OipTeacher(_Remote):
    """Over plain HTTP, as within a machine or a cluster."""


@teacher("oips", transparency="gray-box", provides={"logits", "probabilities", "labels"})
class OipsTeacher(_Remote):
    """Over TLS; the server's certificate is verified, always."""


def _copy(before: KnowledgeStore, after: KnowledgeStore) -> None:
    """Answers that were paid for without the samples that are now beside them."""
    import numpy as np

    rows = np.arange(before.samples)
    for view in range(before.views):
        known = rows[before.known(rows, view)]
        values = before.read(known, view)
        if values is not None and len(known):
            after.keep(known, view, values)


def _lasting(options: OipOptions) -> dict[str, Any]:
    """Without what only says how it is asked."""
    how = {"batch", "concurrency", "timeout", "retries", "pause", "ca", "key", "changed"}
    return options.model_dump(mode="json", exclude=how)


def _beside_runs(folder: Path) -> Path:
    """Where the knowledge store of the run around `folder` lies."""
    from edgekd.distill.knowledge_store import FOLDER

    for above in folder.absolute().parents:
        if (above / "run.json").is_file():
            return above.parent / FOLDER
    raise UsageError("is in no run folder", where=str(folder))


def _client(model: str, options: OipOptions, base: Path) -> Client:
    parts = urlsplit(model)
    scheme = "https" if parts.scheme == "oips" else "http"
    return Client(
        f"{scheme}://{parts.netloc}",
        timeout=options.timeout,
        retries=options.retries,
        pause=options.pause,
        connections=options.concurrency,
        ca=None if options.ca is None else base / Path(options.ca).expanduser(),
        key=options.key,
    )


def _path(model: str) -> str:
    """/v2/models/NAME, or /v2/models/NAME/versions/V."""
    return f"/v2/models/{quote(urlsplit(model).path.strip('/'), safe='/')}"


def _metadata(client: Client, model: str) -> dict[str, Any]:
    found = client.get(_path(model))
    if not isinstance(found, dict) or not isinstance(found.get("outputs", []), list):
        raise StageError("the server says nothing of the model that can be read", where=model)
    return found


def _choose(
    metadata: dict[str, Any], options: OipOptions, dataset: Dataset, model: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The input and the output to use, checked against the data."""
    where = f"teacher.model {model}"
    given = _named(metadata.get("inputs", []), options.input, "input", where)
    taken = _named(metadata.get("outputs", []), options.output, "output", where)
    if given["datatype"] not in _FLOATS:
        raise UsageError(
            f"takes {given['datatype']}; should take floating-point numbers", where=where
        )
    shape = given.get("shape") or []
    wanted = dataset.input.shape
    sizes = shape[1:] if len(shape) == len(wanted) + 1 else shape
    if shape and not (
        len(sizes) == len(wanted) and all(s in (-1, w) for s, w in zip(sizes, wanted, strict=True))
    ):
        raise UsageError(
            f"takes inputs of shape {shape}; the data's are {[-1, *wanted]}", where=where
        )
    return given, taken


def _named(
    tensors: list[dict[str, Any]], wanted: str | None, kind: str, where: str
) -> dict[str, Any]:
    known = {str(tensor.get("name")): tensor for tensor in tensors}
    if wanted is not None and wanted not in known:
        raise UsageError(f"has no {kind} {wanted!r}{suggestion(wanted, known)}", where=where)
    name = wanted or (next(iter(known)) if len(known) == 1 else "logits")
    if name not in known:
        raise UsageError(
            f"has the {kind}s {', '.join(known) or 'none (so says the server)'}",
            where=where,
            fix=f"say which one with teacher.args: {{{kind}: NAME}}",
        )
    return {"datatype": "FP32", **known[name]}


def _gives(output: dict[str, Any]) -> str:
    return "labels" if output["datatype"] in ("BYTES", *_INTEGERS) else "logits"


def _class_names(output: dict[str, Any]) -> list[str] | None:
    """Where a server has names, they are among the parameters of the output."""
    parameters = output.get("parameters") or {}
    for key in ("classes", "labels", "class_names"):
        names = parameters.get(key)
        if isinstance(names, str):
            try:
                names = json.loads(names)
            except ValueError:
                names = [name.strip() for name in names.split(",")]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    return None


def _are_probabilities(logits: np.ndarray) -> bool:
    import numpy as np

    in_range = bool((logits >= 0).all() and (logits <= 1).all())
    return in_range and bool(np.allclose(logits.sum(axis=1), 1, atol=1e-3))


def _one_hot(names: list[str], classes: tuple[str, ...], count: int, where: str) -> np.ndarray:
    """Rows of 0 with a 1 where the class is."""
    import numpy as np

    if len(names) != count:
        raise StageError(f"the teacher gives {len(names)} labels for {count} samples", where=where)
    wrong = [name for name in names if name not in classes]
    if wrong:
        raise StageError(
            f"the teacher answers {wrong[0]!r}, which is no class of the data", where=where
        )
    return np.eye(len(classes), dtype=np.float32)[[classes.index(name) for name in names]]
