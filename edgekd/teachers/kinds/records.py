"""`records:FILE`: a teacher's answers, written down by whoever could ask it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgekd.distill.method import Kind
from edgekd.errors import StageError, UsageError
from edgekd.teachers.labels import reordering
from edgekd.teachers.tables import Table, column_names, read_table
from edgekd.teachers.teacher import (
    Options,
    Teacher,
    check_methods,
    location,
    teacher,
    write_card,
)
from edgekd.teachers.teacher import options as parsed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.distill.method import Knowledge
    from edgekd.pipeline.stages import Context

Gives = Literal["logits", "probabilities", "labels"]
# Column names of each, in the order in which they are looked for.
_COLUMNS: dict[Gives, tuple[str, ...]] = {
    "logits": ("logits",),
    "probabilities": ("probabilities", "probs"),
    "labels": ("label", "labels"),
}
_IDS = ("id", "ids", "index")


class RecordsOptions(Options):
    """`teacher.args` of a file of records; what is not given is read from the file."""

    id: str | None = Field(
        None, description="Column with the sample's id; null: id, ids or index, else rows in order."
    )
    gives: Gives | None = Field(None, description="Which columns; null: logits before the others.")
    classes: list[str] | None = Field(
        None,
        description="Names of its columns of logits in order; null: the file's, else the data's.",
    )
    missing: Literal["error", "leave_out"] = Field(
        "error", description="Training samples without an answer: refuse, or train without them."
    )


@teacher(
    "records",
    # Of answers to which nobody can be asked again; logits may be among them.
    transparency="gray-box",
    provides={"logits", "probabilities", "labels"},
)
class RecordsTeacher(Teacher):
    """`answers.npz` holds them by position in the data: `logits` (n, classes), NaN where there are none."""

    sees_views = False
    Options: ClassVar[type[Options] | None] = RecordsOptions

    def __init__(self, logits: np.ndarray, gives: Gives, where: str) -> None:
        self._logits, self._where = logits, where
        self.provides = provided(gives)

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """The content of the file. Refuses methods that need more than its columns hold."""
        from edgekd.data.source import content_hash

        path = location(config, base)
        options: RecordsOptions = parsed(cls, config.teacher.args)
        gives = _gives(column_names(path), options, path)
        check_methods(config.distill.methods.entries, provided(gives), who=f"records:{path.name}")
        if config.data.augment.mixup or config.data.augment.cutmix:
            raise UsageError(
                "nothing is recorded of mixed samples: the student would see a mixture, and the "
                "teacher's answer to one of its parts",
                where="data.augment",
                fix="set mixup and cutmix to 0, or use a teacher that can be asked",
            )
        if config.distill.transfer.unlabelled is not None:
            raise UsageError(
                "nothing is recorded of samples beside the data",
                where="distill.transfer.unlabelled",
                fix="use a teacher that can be asked",
            )
        return {"options": options.model_dump(mode="json"), "content": content_hash(path)}

    @classmethod
    def make(cls, context: Context) -> None:
        """`answers.npz`: the records in the data's order of samples and classes."""
        options: RecordsOptions = parsed(cls, context.config.teacher.args)
        path, dataset = location(context.config, context.base), context.dataset
        table = read_table(path)
        gives = _gives(list(table.columns), options, path)
        rows = _positions(table, options, dataset, path)
        answers = _answers(table, gives, options, dataset.classes, path)
        save_answers(context.folder, dataset, rows, answers, gives)
        write_card(context, context.folder, parameters=None)
        _check_coverage(cls.load(context.folder, context.base, dataset), options, dataset, path)
        augment = context.config.data.augment
        if augment.crop or augment.flip or augment.colour:
            context.progress.say(
                "  note: every view of a sample gets the recorded answer to the sample itself"
            )

    @classmethod
    def load(cls, folder: Path, base: Path, dataset: Dataset) -> RecordsTeacher:
        """The answers in memory."""
        import numpy as np

        path = folder / "answers.npz"
        with np.load(path, allow_pickle=False) as archive:
            return cls(archive["logits"], str(archive["gives"]), str(path))  # type: ignore[arg-type]

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """The recorded answers to the samples; `inputs` are not looked at."""
        import torch

        from edgekd.distill.method import Knowledge

        logits = torch.from_numpy(self._logits[indices.cpu().numpy()])
        missing = ~logits.isfinite().all(dim=1)
        if missing.any():
            raise StageError(
                f"there is no recorded answer to sample {int(indices.cpu()[missing][0])}",
                where=self._where,
            )
        return Knowledge(logits.to(inputs.device))

    def answers(self, dataset: Dataset, indices: np.ndarray) -> np.ndarray:
        """What was recorded; rows of NaN where nothing was."""
        found: np.ndarray = self._logits[indices]
        return found

    def known(self, indices: np.ndarray) -> np.ndarray:
        """Those with an answer."""
        import numpy as np

        known: np.ndarray = indices[np.isfinite(self._logits[indices]).all(axis=1)]
        return known


def provided(gives: Gives) -> frozenset[Kind]:
    """Logits and probabilities are worth the same: log p differs from logits by a constant."""
    return frozenset({"labels"} if gives == "labels" else {"logits", "probabilities", "labels"})


def save_answers(
    folder: Path, dataset: Dataset, positions: np.ndarray, logits: np.ndarray, gives: Gives
) -> None:
    """`answers.npz` of the answers `logits` (m, classes) to the samples at `positions` (m,)."""
    import io

    import numpy as np

    from edgekd.artifacts import write_bytes

    everything = np.full((len(dataset.labels), len(dataset.classes)), np.nan, np.float32)
    everything[positions] = logits
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=everything, gives=np.array(gives))
    write_bytes(folder / "answers.npz", buffer.getvalue())


def _gives(names: Sequence[str], options: RecordsOptions, path: Path) -> Gives:
    for gives in (options.gives,) if options.gives else _COLUMNS:
        if any(n in _COLUMNS[gives] or n.partition(".")[0] in _COLUMNS[gives] for n in names):
            return gives
    wanted = options.gives or "logits, probabilities or label"
    raise UsageError(
        f"has the columns {', '.join(names) or 'none'}",
        where=str(path),
        fix=f"should have {wanted}, or one column for every class, such as logits.CLASS",
    )


def _positions(table: Table, options: RecordsOptions, dataset: Dataset, path: Path) -> np.ndarray:
    """Which sample of the data each row is about."""
    import numpy as np

    count = len(dataset.labels)
    name = options.id or next((n for n in _IDS if n in table.columns), None)
    if name is None:
        if table.rows != count:
            raise UsageError(
                f"has {table.rows} rows and no id column, and the data has {count} samples",
                where=str(path),
                fix="add a column `id`: the sample's position in the data, or its name there",
            )
        return np.arange(count)
    if name not in table.columns:
        raise UsageError(f"has no column {name!r}", where=f"{path} (teacher.args.id)")
    by_name = {text: i for i, text in enumerate(dataset.ids or map(str, range(count)))}
    if dataset.ids is not None and not set(map(str, table.columns[name])) & by_name.keys():
        by_name = {str(i): i for i in range(count)}
    ids = [str(value) for value in table.columns[name]]
    unknown = [text for text in ids if text not in by_name]
    if unknown:
        example = next(iter(by_name))
        raise UsageError(
            f"{len(unknown)} of its {len(ids)} ids are of no sample, such as {unknown[0]!r}",
            where=str(path),
            fix=f"ids of this data are like {example!r}",
        )
    rows = np.array([by_name[text] for text in ids], np.int64)
    if len(set(ids)) < len(ids):
        values, counts = np.unique(rows, return_counts=True)
        twice = ids[int(np.flatnonzero(rows == values[counts > 1][0])[0])]
        raise UsageError(
            f"{int((counts > 1).sum())} ids stand there more than once, such as {twice!r}",
            where=str(path),
        )
    return rows


def _answers(
    table: Table, gives: Gives, options: RecordsOptions, classes: tuple[str, ...], path: Path
) -> np.ndarray:
    """float32 (rows, classes) in the data's order: logits, log p, or rows of 0 with a 1."""
    import numpy as np

    from edgekd.teachers.kinds.onnx import log_probabilities

    if gives == "labels":
        name = next(n for n in _COLUMNS[gives] if n in table.columns)
        return _one_hot(table.columns[name], options.classes or table.classes, classes, path)
    values, names = _matrix(table, gives, path)
    names = names or options.classes or table.classes
    if values.ndim != 2 or values.shape[1] != len(names or classes):
        raise UsageError(
            f"has {gives} of shape {values.shape}; should be (n, {len(names or classes)})",
            where=str(path),
        )
    order = reordering(names, classes, where=str(path))
    if order is not None:
        values = values[:, order]
    bad = ~np.isfinite(values).all(axis=1)
    if gives == "probabilities":
        bad |= (values < 0).any(axis=1) | (np.abs(values.sum(axis=1) - 1) > 0.02)
    if bad.any():
        what = "finite numbers" if gives == "logits" else "between 0 and 1 with the sum 1"
        raise UsageError(
            f"{int(bad.sum())} of {len(bad)} rows of {gives} are not {what}, such as row "
            f"{int(np.argmax(bad)) + 1}",
            where=str(path),
        )
    return log_probabilities(values) if gives == "probabilities" else values.astype(np.float32)


def _matrix(table: Table, gives: Gives, path: Path) -> tuple[np.ndarray, list[str] | None]:
    """The numbers, float64 (rows, columns), and the columns' names where the file has them."""
    import numpy as np

    used: dict[str, Sequence[Any]] = {}
    try:
        for name in _COLUMNS[gives]:
            if name in table.columns:
                column = table.columns[name]
                used = {name: column}
                if len(column) and isinstance(column[0], dict):
                    keys = list(column[0])
                    return np.array([[row[k] for k in keys] for row in column], np.float64), keys
                return np.array(list(column), np.float64), None
            several = [n for n in table.columns if n.startswith(f"{name}.")]
            if several:
                used = {n: table.columns[n] for n in several}
                values = np.array([table.columns[n] for n in several], np.float64).T
                return values, [n.partition(".")[2] for n in several]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(_no_numbers(used) or f"{gives}: {error}", where=str(path)) from None
    raise AssertionError(gives)


def _no_numbers(columns: dict[str, Sequence[Any]]) -> str | None:
    """Where in columns of numbers, of lists or of {class: number} the first thing is that is none."""
    for name, column in columns.items():
        keys = list(column[0]) if isinstance(column[0], dict) else None
        for i, value in enumerate(column, 1):
            where = f"row {i} of column {name!r}"
            if isinstance(value, dict) and keys is not None:
                missing = [key for key in keys if key not in value]
                if missing:
                    return f"{where} has no {missing[0]!r}"
            cells = list(value.values()) if isinstance(value, dict) else value
            parts = cells if isinstance(cells, list) else [cells]
            for part in parts:
                try:
                    float(part)
                except (ValueError, TypeError):
                    return f"{where} has {part!r:.40}, which is no number"
            first = column[0]
            if isinstance(first, list) and len(parts) != len(first):
                return f"{where} has {len(parts)} values, the first row {len(first)}"
    return None


def _one_hot(
    values: Sequence[Any], names: list[str] | None, classes: tuple[str, ...], path: Path
) -> np.ndarray:
    """Labels are class names, or numbers of the names the file or the configuration gives."""
    import numpy as np

    numbers = {name: i for i, name in enumerate(classes)}
    if names is not None:
        reordering(names, classes, where=str(path))
        numbers = {str(i): numbers[name] for i, name in enumerate(names)} | numbers
    texts = [str(value) for value in values]
    unknown = [i for i, text in enumerate(texts) if text not in numbers]
    if unknown and names is None and all(t.isdigit() and int(t) < len(classes) for t in texts):
        # Numbers, of data whose classes have names.
        numbers, unknown = {str(i): i for i in range(len(classes))}, []
    if unknown:
        raise UsageError(
            f"{len(unknown)} of {len(texts)} labels are no class of the data, such as "
            f"{texts[unknown[0]]!r} in row {unknown[0] + 1}",
            where=str(path),
            fix=f"the data's classes are {', '.join(classes[:10])}",
        )
    return np.eye(len(classes), dtype=np.float32)[[numbers[text] for text in texts]]


def _check_coverage(
    records: RecordsTeacher, options: RecordsOptions, dataset: Dataset, path: Path
) -> None:
    import numpy as np

    missing = np.setdiff1d(dataset.train, records.known(dataset.train))
    if not len(missing):
        return
    if options.missing == "error" or len(missing) == len(dataset.train):
        names = dataset.ids or range(len(dataset.labels))
        some = ", ".join(repr(names[i]) for i in missing[:3].tolist())
        raise UsageError(
            f"has no answer to {len(missing)} of {len(dataset.train)} training samples, such as {some}",
            where=str(path),
            fix="ask the teacher about them, or train without them: teacher.args: "
            "{missing: leave_out}",
        )
