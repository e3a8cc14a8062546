"""Where schemes train: one run's data, settings and folder. What is finished is not trained again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.artifacts import sha256_file
from edgekd.config.schema import Config, KnowledgeStorage, Model, Training, Transfer
from edgekd.config.units import format_quantity
from edgekd.data.resolve import Dataset
from edgekd.data.transfer import transfer_set
from edgekd.data.views import Views
from edgekd.distill import parallel
from edgekd.distill.compute import autocast, teacher_precision
from edgekd.distill.doctor import examine, gradient_line
from edgekd.distill.knowledge_store import FOLDER, LOGITS, StoredKnowledge, TopK
from edgekd.distill.method import (
    FeatureMethod,
    Knowledge,
    Method,
    MethodList,
    needing_every_logit,
)
from edgekd.distill.methods.kd import KD
from edgekd.distill.objective import Objective, hard_loss
from edgekd.distill.suggest import suggested
from edgekd.distill.taps import Tapped
from edgekd.distill.trainer import TeacherKnowledge, train
from edgekd.errors import UsageError
from edgekd.models import role
from edgekd.models.start import start_from
from edgekd.models.weights import load_weights
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import Context, data_part, unlabelled_part
from edgekd.results import (
    Accuracy,
    Computing,
    History,
    InputSpec,
    SchemeModel,
    SchemeReport,
    TrainingReport,
)
from edgekd.tasks.task import of
from edgekd.teachers.kinds.torch import TorchTeacher
from edgekd.teachers.teacher import GIVEN, Teacher
from edgekd.teachers.teacher import load as load_teacher

# In the folder of what is being trained; gone when it is.
CHECKPOINT = "checkpoint.pt"
# The doctor's batch at most: more would tell it the same.
_EXAMINED = 512
# Of the validation split, so many samples at most show it whether a teacher knows anything.
_SCORED = 1024


@dataclass(frozen=True)
class Known:
    """A teacher, and plain data that changes when its answers may: the key of its knowledge store."""

    teacher: Teacher
    identity: Any


class Workshop:
    """What a scheme gets. Folders are relative to the stage's own, which is the student's."""

    def __init__(self, context: Context) -> None:
        self.context, self.config = context, context.config.distill
        # Teachers learn from everything, the student from the transfer set.
        self.everything = context.dataset
        self.dataset = self._transfer_set()
        self.made: list[SchemeModel] = []

    def _transfer_set(self) -> Dataset:
        transfer, data = self.config.transfer, self.context.config.data
        if transfer == Transfer():
            return self.everything
        found = transfer_set(self.everything, transfer, data, data.seed, self.context.base)
        told = found.strata[found.train]
        told = told[told >= 0]
        strata = self.everything.strata
        untold = np.setdiff1d(strata[found.train[found.train < len(strata)]], told)
        without = ", ".join(repr(found.classes[label]) for label in untold) if len(told) else ""
        self.say(
            f"transfer set: {len(found.train)} samples, {len(told)} with labels"
            + (f" (none of class {without})" if without else "")
        )
        return found

    # -- models -----------------------------------------------------------------------------

    def build(self, network: Model, *, seed: int = 0) -> nn.Module:
        """An untrained network for this data; `seed` counts from the run's. Raises UsageError."""
        seed += self.context.config.seed
        return role.build(network, "student", self.dataset, seed=seed, base=self.context.base)

    @property
    def student(self) -> Model:
        """The network that ships."""
        return self.context.config.student

    @cached_property
    def teacher(self) -> Known:
        """The run's own teacher."""
        run = self.context.run
        teacher = load_teacher(run, self.context.base, self.context.dataset)
        return Known(teacher, teacher_identity(run))

    def known(self, module: nn.Module, folder: str) -> Known:
        """A network that was trained here, as a teacher of others."""
        path, files = self.context.folder / folder, ("model.safetensors", "model.json")
        leads = parallel.rank() == 0
        digests = [sha256_file(path / name) for name in files] if leads else None
        return Known(TorchTeacher(module), parallel.told(digests))

    def member(
        self, name: str, network: Model, folder: str, seed: int, weights: str | None
    ) -> Known:
        """Another teacher: its weights given, or trained as `teacher.train` says. Kept in `folder`."""
        if weights is None or self.finished(folder):
            settings = self.context.config.teacher.train
            module = self.fit(
                name, network, folder, training=settings, dataset=self.everything, seed=seed
            )
        else:
            module = role.build(
                network, "student", self.dataset, seed=GIVEN, base=self.context.base
            )
            load_weights(module, self.context.base / weights)
            role.save(
                module.eval(), network, "student", self.context.folder / folder, self.dataset,
                seed=GIVEN, history=None,
            )  # fmt: skip
            self.tell(name, network, folder)
        return self.known(module, folder)

    @property
    def kd_temperature(self) -> float:
        """At which soft targets are made; 1 without kd."""
        found = [m.temperature for m in self.recipe[1] if isinstance(m, KD)]
        return found[0] if found else 1.0

    # -- training ---------------------------------------------------------------------------

    def fit(
        self,
        name: str,
        network: Model,
        folder: str = "",
        *,
        teacher: Known | None = None,
        module: nn.Module | None = None,
        training: Training | None = None,
        dataset: Dataset | None = None,
        objective: Objective | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """Train `network` and keep it in `folder`; the student's is "". Done before: only load it.

        It learns from the labels alone, or by the configured methods from `teacher`; `module` is its
        start where that is not random, `training` its settings where they are not the student's.
        """
        module = module if module is not None else self.build(network, seed=seed)
        if network is self.student and self.context.config.student.start is not None:
            start_from(module, self.network_of(self.teacher), self.context.config.student.start)
        if self.finished(folder):
            self.load(module, folder)
            self.tell(name, network, folder)
            return module
        if objective is None:
            objective = (
                self.objective
                if teacher is not None
                else Objective(hard=hard_loss(dataset or self.dataset))
            )
        history = self.train(
            name, module, objective, folder,
            teacher=teacher, training=training, dataset=dataset, seed=seed,
        )  # fmt: skip
        self.keep(module, network, folder, history, seed=seed)
        self.tell(name, network, folder)
        return module

    @property
    def objective(self) -> Objective:
        """The configured one, new: its own layers are not trained yet."""
        return Objective(*self.recipe, hard_loss(self.dataset))

    @cached_property
    def recipe(self) -> tuple[float, tuple[Method, ...]]:
        """The weight of the labels and the methods, as configured or, for `auto`, suggested."""
        config = self.config
        if not config.methods.auto:
            return config.labels_weight, config.methods.entries
        alpha, methods = suggested(self.dataset)
        alpha = alpha if config.alpha is None else config.alpha
        names = ", ".join(method.name for method in methods)
        self.say(f"methods: {names} beside the labels at {alpha:g} (distill.methods: auto)")
        return alpha, methods

    def train(
        self,
        name: str,
        module: nn.Module,
        objective: Objective,
        folder: str = "",
        *,
        teacher: Known | None = None,
        training: Training | None = None,
        dataset: Dataset | None = None,
        seed: int = 0,
        until: int | None = None,
    ) -> History:
        """Train `module` in place with the one loop, going on from a checkpoint in `folder`.

        `until`: for so many epochs of all, as far as they are not done yet.
        """
        dataset = dataset or self.dataset
        seed += self.context.config.seed
        training = training or self.config
        if teacher is not None:
            dataset = self._taught(teacher.teacher, dataset)
        data = self.context.config.data
        views = Views(dataset, data.augment, data.seed)
        asked: TeacherKnowledge | None = None
        if teacher is not None:
            self._ask_once(teacher.teacher, views)
            self._prepare(module, objective, teacher, views, seed)
            asked = self.ask(teacher, objective, views)
        if self.config.doctor and (teacher is not None or objective.more):
            stored = asked if isinstance(asked, StoredKnowledge) else None
            self._examine(module, objective, teacher, views, stored, training)
        return train(
            module,
            dataset,
            views,
            objective,
            training,
            seed=seed,
            checkpoint=self._checkpoint(folder),
            progress=self.context.progress,
            name=name,
            teacher=asked and numbered(asked, dataset.input),
            until=until,
        )

    def _ask_once(self, teacher: Teacher, views: Views) -> None:
        """Whoever is dear to ask is asked by one process; the others find its answers."""
        leads = parallel.rank() == 0
        if leads:
            teacher.prepare(self.context, views)
        parallel.told(None)
        if not leads:
            teacher.prepare(self.context, views, leads=False)

    def _taught(self, teacher: Teacher, dataset: Dataset) -> Dataset:
        """The data with those training samples that the teacher has an answer to."""
        known = teacher.known(dataset.train)
        if len(known) == len(dataset.train):
            return dataset
        self.say(
            f"note: {len(dataset.train) - len(known)} of {len(dataset.train)} training samples are "
            "left out: the teacher has no answer to them"
        )
        return replace(dataset, train=known)

    def finished(self, folder: str = "") -> bool:
        """Whether what belongs in `folder` was trained to the end; its history is written last."""
        return parallel.told((self.context.folder / folder / "history.json").exists())

    def load(self, module: nn.Module, folder: str) -> None:
        """Fill `module` with what was kept in `folder`, and leave it in evaluation mode."""
        if parallel.rank() == 0:
            load_weights(module, self.context.folder / folder / "model.safetensors")
        module.load_state_dict(parallel.told(module.state_dict()))
        module.eval()

    def keep(
        self,
        module: nn.Module,
        network: Model,
        folder: str,
        history: History | None,
        *,
        seed: int = 0,
    ) -> None:
        """Write a trained network with its card, accuracy and history."""
        role.save(
            module, network, "student", self.context.folder / folder, self.dataset,
            seed=self.context.config.seed + seed, history=history,
        )  # fmt: skip
        self._checkpoint(folder).unlink(missing_ok=True)

    def _checkpoint(self, folder: str) -> Path:
        return self.context.folder / folder / CHECKPOINT

    # -- teachers ---------------------------------------------------------------------------

    def ask(self, known: Known, objective: Objective, views: Views) -> TeacherKnowledge:
        """What the teacher says of a batch, from the store that all runs beside this one share."""
        dataset = views.dataset
        config = self.config.knowledge
        if not of(dataset.task).top1:
            # Of numbers half precision may be coarser than what they differ by, and a part is nothing.
            config = config.model_copy(update={"precision": "f32", "top_k": None, "teacher": "f32"})
        asked = seen(known.teacher, objective.teacher_taps)
        if known.teacher.keeps or not known.teacher.sees_views:
            return asked

        def ask(inputs: Tensor, indices: Tensor, view: int, precision: str) -> Knowledge:
            with autocast(Computing(device=inputs.device.type, precision=precision)):
                return asked(inputs, indices, view)

        check_store(objective.methods, config)
        batch = torch.from_numpy(dataset.train[: self.config.batch_size])
        example = views.batch(batch, 0)
        precision = teacher_precision(
            config.teacher, lambda p: ask(example, batch, 0, p).logits.float()
        )
        stored = StoredKnowledge(
            lambda inputs, indices, view: ask(inputs, indices, view, precision),
            self.context.run.path.parent / FOLDER,
            self.identity(known, views, precision),
            config,
            views=views.count,
            samples=len(dataset.labels),
            rows=dataset.train,
            example=ask(example, batch, 0, precision),
            every_logit=needing_every_logit(objective.methods) is not None,
        )
        codec = stored.stores[LOGITS].codec if stored.stores else None
        if isinstance(codec, TopK):
            self.say(
                f"the store keeps the {codec.k} largest of {codec.classes} logits, and the log-sum-exp of "
                "the others, which they share equally for the student (distill.knowledge.top_k)"
            )
        if config.store and not stored.stores:
            self.say(
                f"the teacher runs in every step: its knowledge would take "
                f"{format_quantity(stored.size, 'bytes')}, above distill.knowledge.limit "
                f"{config.limit}"
            )
        return stored

    def identity(self, known: Known, views: Views, precision: str) -> dict[str, Any]:
        """What names the store of a teacher's answers to these views."""
        identity = store_identity(known.identity, self.context.config, self.context.base, precision)
        train = views.dataset.train
        if views.mixes and not np.array_equal(train, self.everything.train):
            # Another training split is other partners in every view.
            identity["mixed with"] = hashlib.sha256(train.tobytes()).hexdigest()
        return identity

    @staticmethod
    def network_of(known: Known) -> nn.Module:
        """The network that a white-box teacher is."""
        if not isinstance(known.teacher, TorchTeacher):
            raise UsageError("the teacher is no network that can be trained", where="teacher.model")
        return known.teacher.module

    @staticmethod
    def accuracy(known: Known, dataset: Dataset, indices: np.ndarray) -> Accuracy | None:
        """The score of a teacher of any kind on unaugmented samples it has answers to."""
        answers = known.teacher.answers(dataset, indices)
        return role.accuracy_of(answers, dataset, indices)

    def _prepare(
        self, module: nn.Module, objective: Objective, known: Known, views: Views, seed: int
    ) -> None:
        """Give the methods what they learn with, and say where they look."""
        dataset = views.dataset
        if isinstance(known.teacher, TorchTeacher):
            example = dataset.tensor(np.resize(dataset.train, 4))
            objective.prepare(module, known.teacher.module, example, seed, population(dataset))
        for method in objective.methods:
            if isinstance(method, FeatureMethod):
                pairs = ", ".join(f"{t} → {s}" for t, s in method.taps or ())
                self.say(f"{method.name}: {pairs}")

    def _examine(
        self,
        module: nn.Module,
        objective: Objective,
        known: Known | None,
        views: Views,
        stored: StoredKnowledge | None,
        training: Training,
    ) -> None:
        """What the doctor says of one batch of the first view."""
        dataset = views.dataset
        rows = dataset.train if known is None else known.teacher.known(dataset.train)
        # Those with a label first: a batch of others shows nothing of the hard-label term.
        rows = rows[np.argsort(dataset.strata[rows] < 0, kind="stable")]
        rows = np.resize(rows, min(training.batch_size, len(rows), _EXAMINED))
        batch = torch.from_numpy(rows)
        # Not through the store: it must hold what training batches give, and nothing else.
        inputs = views.batch(batch, 0)
        answers = again = kept = expected = accuracy = None
        if known is not None:
            ask = numbered(seen(known.teacher, objective.teacher_taps), dataset.input)
            answers = ask(inputs, batch, 0)
            half = len(batch) // 2
            if known.teacher.sees_views:
                again = ask(inputs[:half], batch[:half], 0)
            accuracy = self.accuracy(known, dataset, _some(dataset.validation))
        if stored is not None and answers is not None:
            kept = stored.known(rows, 0)
            expected = None if kept is None else stored.rounded(answers)
        labels = torch.from_numpy(dataset.labels)[batch]
        found = examine(
            module,
            objective,
            training,
            accuracy,
            inputs,
            answers,
            labels,
            again=again,
            stored=kept,
            expected=expected,
        )
        for complaint in found.complaints:
            self.say(f"warning: {complaint}")
        self.say(gradient_line(found.norms))

    # -- telling ----------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line for the user."""
        self.context.progress.say(f"  {text}")

    def note(
        self, name: str, known: Known, *, dataset: Dataset | None = None, **about: Any
    ) -> None:
        """A teacher that is not the run's, with its accuracy; `dataset` where its classes are others."""
        dataset = dataset or self.dataset
        model = SchemeModel(
            name=name,
            validation=self.accuracy(known, dataset, dataset.validation),
            test=self.accuracy(known, dataset, dataset.test),
            **about,
        )
        self.made.append(model)
        self._tell_score(name, model.test)

    def tell(self, name: str, network: Model, folder: str) -> None:
        """A network that was kept in `folder`, with its accuracy."""
        path = self.context.folder / folder / "metrics.json"
        report = parallel.told(TrainingReport.read(path) if parallel.rank() == 0 else None)
        assert report is not None
        self.made.append(
            SchemeModel(
                name=name,
                folder=folder or ".",
                model=network.model,
                validation=report.validation,
                test=report.test,
            )
        )
        self._tell_score(name, report.test)

    def _tell_score(self, name: str, test: Accuracy | None) -> None:
        shown = "unknown" if test is None else f"{test.value:.2%}"
        self.say(f"{name} {of(self.dataset.task).label}: {shown} on the test split (PyTorch)")

    def report(self) -> None:
        """`scheme.json`: what was trained on the way."""
        scheme = self.config.scheme.entry.name
        alpha, methods = self.recipe
        chosen = MethodList(methods).dump() if self.config.methods.auto else None
        SchemeReport(
            scheme=scheme,
            models=tuple(self.made),
            alpha=None if chosen is None else alpha,
            methods=chosen,
        ).write(self.context.folder / "scheme.json")


def teacher_identity(run: Run) -> dict[str, str]:
    """What the answers of a run's own teacher depend on."""
    artifacts = run.manifest.stages["teacher"].artifacts
    return {n: a.sha256 for n, a in artifacts.items() if n.startswith("teacher/model.")}


def store_identity(teacher: Any, config: Config, base: Path, precision: str) -> dict[str, Any]:
    """What is kept of a teacher's answers depends on; not the student, nor the seed of its training."""
    data = data_part(config, base)
    del data["run_seed"]
    identity = {"teacher": teacher, "data": data, "precision": precision}
    more = unlabelled_part(config, base)
    return identity if more is None else {**identity, "unlabelled": more}


def check_store(methods: Iterable[Method], config: KnowledgeStorage) -> None:
    """Raises UsageError for a method that needs more than the store is to keep."""
    needing = needing_every_logit(methods)
    if needing is not None and isinstance(config.top_k, int):
        raise UsageError(
            f"{needing} needs every logit, and only the {config.top_k} largest are to be kept",
            where="distill.knowledge.top_k",
            fix="set it to auto or null, or use another method",
        )


def seen(teacher: Teacher, taps: tuple[str, ...]) -> TeacherKnowledge:
    """By asking the teacher itself, with the features that pass its taps."""
    if not isinstance(teacher, TorchTeacher):
        return teacher.knowledge
    module, tapped = teacher.module, Tapped(teacher.module, taps)

    def ask(inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        module.to(inputs.device)
        # Hooked for this call alone: others tap the same teacher.
        with torch.no_grad(), tapped:
            return Knowledge(*tapped(inputs))

    return ask


def numbered(ask: TeacherKnowledge, spec: InputSpec) -> TeacherKnowledge:
    """The same with the samples' numbers, which contrastive methods look at, and which are no padding."""
    padding = None if spec.tokens is None else spec.tokens.padding

    def numbered(inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        mask = None if padding is None else inputs != padding
        return replace(ask(inputs, indices, view), indices=indices, mask=mask)

    return numbered


def _some(rows: np.ndarray) -> np.ndarray:
    """Evenly chosen, at most as many as the doctor scores."""
    return rows[:: -(-len(rows) // _SCORED)]


def population(dataset: Dataset) -> Tensor:
    """The classes (samples,) of the training split; −1 for all other samples.

    Labels that are numbers: those of the training split alone, (n, outputs).
    """
    if dataset.output is not None:
        return torch.from_numpy(dataset.labels[dataset.train])
    classes = torch.full((len(dataset.labels),), -1)
    train = torch.from_numpy(dataset.train)
    classes[train] = torch.from_numpy(dataset.strata)[train]
    return classes
