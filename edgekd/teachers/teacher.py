"""What a teacher is. One file per kind under `kinds/`, registered by `@teacher`.

This module and the kinds' modules import no torch at load time: a configuration is checked in
milliseconds. A teacher of any kind becomes files in `teacher/` of the run folder once, and is
opened from there by every later stage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekd.config.problems import describe, problems
from edgekd.distill.method import Kind, Method, working
from edgekd.errors import UsageError
from edgekd.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.data.views import Views
    from edgekd.distill.method import Knowledge
    from edgekd.pipeline.run import Run
    from edgekd.pipeline.stages import Context

Transparency = Literal["white-box", "gray-box", "black-box"]
# What a teacher of networks from the zoo or a factory of the user's is called in the registry.
TORCH = "torch"
# The seed on the card of one that was not trained here: all runs of it share one knowledge store.
GIVEN = 0


class Options(BaseModel):
    """What `teacher.args` may hold for a kind of teacher: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Teacher:
    """One that is open: always in evaluation mode, never with gradients.

    `provides` is all that a kind can ever give; an open teacher may narrow it (a file of records
    may hold labels only). `sees_views` is False where every view of a sample gets the answer to
    the sample itself. `exports` says that it is a file which runs on devices.
    """

    kind: ClassVar[str]
    transparency: ClassVar[Transparency]
    provides: frozenset[Kind]
    exports: ClassVar[bool] = False
    sees_views: bool = True
    keeps: ClassVar[bool] = False
    # None: the keyword arguments of a factory, which only it can check.
    Options: ClassVar[type[Options] | None] = Options

    @classmethod
    def check(cls, model: str, args: Any) -> None:
        """Raises ValueError for a `teacher.model` that cannot be read; `args` are its options."""

    @classmethod
    def possible(cls, args: Any) -> frozenset[Kind]:
        """What it can give with these options; less than `provides` where they say so."""
        gives = getattr(args, "gives", None)
        return frozenset({"labels"}) if gives == "labels" else cls.provides

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """Plain data that changes when its answers may: content of files, address, options.

        Found without opening it, in milliseconds. Raises UsageError for files that are missing, and
        for methods that need more than it has, where that can be told already.
        """
        raise NotImplementedError

    @classmethod
    def make(cls, context: Context) -> None:
        """Write what it is into `context.folder`, the run's `teacher/` to be.

        `model.json` (`write_card`) and whatever `load` reads; `metrics.json` is the stage's.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, base: Path, dataset: Dataset) -> Teacher:
        """Open it from a run's `teacher/`. Relative paths of factories start at `base`."""
        raise NotImplementedError

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """What it says of view `view` (n, …) of the samples `indices` (n,): at least logits (n, classes).

        Probabilities p are given as log p, which no softmax tells from logits; labels as rows of 0
        with a 1. Raises StageError for samples that it has no answer to.
        """
        raise NotImplementedError

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of any inputs (n, …), of a kind that `exports`: exports are held to it."""
        raise NotImplementedError

    def prepare(self, context: Context, views: Views, *, leads: bool = True) -> None:
        """Called once before a training on `views`. Who is dear to ask is asked about all of them here.

        Of several processes the one that `leads` is the first, and asks for all of them.
        Such a teacher keeps its answers itself (`keeps`); others are kept by the distill stage.
        """

    def answers(self, dataset: Dataset, indices: np.ndarray) -> np.ndarray:
        """float32 logits (n, classes) of unaugmented samples; rows of NaN where it has no answer."""
        import numpy as np
        import torch

        chunks = [indices[i : i + 256] for i in range(0, len(indices), 256)]
        found = [
            self.knowledge(dataset.tensor(c), torch.from_numpy(c), 0).logits.numpy() for c in chunks
        ]
        return np.concatenate(found).astype(np.float32)

    def known(self, indices: np.ndarray) -> np.ndarray:
        """Those of the samples that a student can learn from it; all, unless answers may be missing."""
        return indices


TEACHERS: Registry[type[Teacher]] = Registry("kind of teacher", "edgekd.teachers.kinds")
T = TypeVar("T", bound=type[Teacher])


def teacher(kind: str, *, transparency: Transparency, provides: set[Kind]) -> Callable[[T], T]:
    """Class decorator: register a Teacher as `kind`, the text before the colon of `teacher.model`."""

    def decorate(cls: T) -> T:
        cls.kind, cls.transparency, cls.provides = kind, transparency, frozenset(provides)
        TEACHERS.register(kind)(cls)
        return cls

    return decorate


def kind_of(model: str) -> type[Teacher]:
    """The kind that `teacher.model` names; networks (zoo:…, package:factory) are white-box ones."""
    kind = model.partition(":")[0]
    return TEACHERS.get(kind if kind in TEACHERS.names() and kind != TORCH else TORCH)


def location(config: Config, base: Path) -> Path:
    """The file behind the colon of `teacher.model`. Raises UsageError when there is none."""
    kind, _, text = config.teacher.model.partition(":")
    path = base / Path(text).expanduser()
    if not text or not path.is_file():
        problem = f"is a folder: {path}" if text and path.is_dir() else f"no such file: {path}"
        raise UsageError(problem if text else f"needs a path: {kind}:FILE", where="teacher.model")
    return path


def load(run: Run, base: Path, dataset: Dataset) -> Teacher:
    """The finished teacher of a run."""
    return kind_of(run.card("teacher").model).load(run.path / "teacher", base, dataset)


def options(cls: type[Teacher], args: dict[str, Any]) -> Any:
    """`teacher.args` as the kind's options. Raises ValueError in one line, naming the key."""
    assert cls.Options is not None
    try:
        return cls.Options.model_validate(args)
    except ValidationError as error:
        first = problems(error)[0]
        key = ".".join(("args", *map(str, first["loc"])))
        raise ValueError(f"{key}: {describe(first, cls.Options.model_fields)}") from None


def check_methods(methods: tuple[Method, ...], provides: frozenset[Kind], *, who: str) -> None:
    """Raises UsageError when a method needs what the teacher `who` cannot give, naming those that work."""
    for method in methods:
        missing = method.needs - provides
        if missing:
            raise UsageError(
                f"{method.name} needs the teacher's {' and '.join(sorted(missing))}, and {who} gives "
                f"{', '.join(sorted(provides)) or 'nothing'} only",
                where="distill.methods",
                fix=f"methods that work with it: {', '.join(working(provides))}",
            )


def write_card(context: Context, folder: Path, *, parameters: int | None) -> None:
    """`model.json`: how the teacher is opened again."""
    from edgekd.results import ModelCard

    dataset, config = context.dataset, context.config
    ModelCard(
        role="teacher",
        model=config.teacher.model,
        args=config.teacher.args,
        classes=dataset.classes,
        input=dataset.input,
        parameters=parameters,
        seed=GIVEN,
    ).write(folder / "model.json")
