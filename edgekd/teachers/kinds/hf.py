"""White-box: `hf:FOLDER`, a Hugging Face sequence classifier that lies here, as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgekd.data.tokenizer import FILE, same_ids
from edgekd.errors import UsageError
from edgekd.teachers.kinds.torch import TorchTeacher
from edgekd.teachers.labels import reordering
from edgekd.teachers.teacher import GIVEN, Options, teacher
from edgekd.teachers.teacher import options as parsed

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.pipeline.stages import Context

_CONFIG = "config.json"
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


class HfOptions(Options):
    """`teacher.args` of a folder of transformers."""

    classes: list[str] | None = Field(
        None, description="The names of its classes in order; null: those of id2label."
    )


@teacher(
    "hf",
    transparency="white-box",
    provides={"features", "logits", "probabilities", "labels"},
)
class HfTeacher(TorchTeacher):
    """The folder's weights and configuration are copied into the run, and opened from there."""

    Options: ClassVar[type[Options] | None] = HfOptions

    @classmethod
    def check(cls, model: str, args: Any) -> None:
        """Raises ValueError without a folder."""
        if not model.partition(":")[2]:
            raise ValueError(f"{model!r} should be hf:FOLDER")

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """The content of its weights and configuration."""
        from edgekd.data.source import content_hash

        folder = _folder(config, base)
        names = [_CONFIG, *sorted(p.name for p in folder.glob("*.safetensors"))]
        return {
            "options": parsed(cls, config.teacher.args).model_dump(mode="json"),
            "content": {name: content_hash(folder / name) for name in names},
        }

    @classmethod
    def make(cls, context: Context) -> None:
        """`model.safetensors`, `model.config.json` and `model.json`."""
        from edgekd.models import huggingface, resolve
        from edgekd.models.role import save_network

        config, dataset = context.config, context.dataset
        folder = _folder(config, context.base)
        tokens = dataset.input.tokens
        if tokens is None:
            raise UsageError(
                f"it reads texts, and data.source {config.data.source} has none",
                where=f"teacher.model {config.teacher.model}",
                fix="use data.source: text:FILE",
            )
        _check_tokenizer(folder, dataset)
        huggingface.package()
        model, about = huggingface.read(folder)
        _check_ids(about, dataset, folder)
        if about.get("problem_type") not in (None, "single_label_classification"):
            raise UsageError(
                f"is for {about['problem_type']}; a teacher of texts gives one class each",
                where=f"{folder / _CONFIG}: problem_type",
            )
        options: HfOptions = parsed(cls, config.teacher.args)
        names = options.classes or _names(about)
        if names is None:
            context.progress.say(
                f"  note: its classes have no names; taken to be in this order: "
                f"{', '.join(dataset.classes)} (teacher.args: {{classes: […]}} says otherwise)"
            )
        where = f"teacher.model {config.teacher.model}"
        order = reordering(names, dataset.classes, where=where)
        module = huggingface.Classifier(model, tokens.padding, order).eval()
        resolve.check(
            module,
            role="teacher",
            input_shape=dataset.input.shape,
            outputs=(len(dataset.classes),),
            tokens=tokens,
        )
        huggingface.save_config(context.folder, about, module)
        save_network(
            module, config.teacher, "teacher", context.folder, dataset,
            seed=GIVEN, history=None,
        )  # fmt: skip


def _folder(config: Config, base: Path) -> Path:
    """The folder behind the colon. Raises UsageError unless it holds safetensors and a configuration."""
    text = config.teacher.model.partition(":")[2]
    folder, where = base / Path(text).expanduser(), "teacher.model"
    if not folder.is_dir():
        raise UsageError(
            f"no such folder: {folder}",
            where=where,
            fix="nothing is downloaded: hf: takes a folder that save_pretrained wrote, no name of a hub",
        )
    if not (folder / _CONFIG).is_file():
        raise UsageError(f"the folder has no {_CONFIG}: {folder}", where=where)
    if not any((folder / name).is_file() for name in _SAFE):
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        raise UsageError(
            f"the folder has no model.safetensors: {folder}"
            + (f"; {pickles[0]} may hold code and is not loaded" if pickles else ""),
            where=where,
            fix="where you trust it, write it anew with save_pretrained, which makes safetensors",
        )
    return folder


def _check_tokenizer(folder: Path, dataset: Dataset) -> None:
    """Raises UsageError where the data's ids mean something else to the teacher."""
    path = folder / FILE
    if not path.is_file() or dataset.tokenizer is None:
        return
    if not same_ids(path.read_text("utf-8"), dataset.tokenizer):
        raise UsageError(
            f"the teacher's {FILE} is another one than the data's: ids would mean other words to it",
            where="data.text.tokenizer",
            fix="leave it out: then texts are read as the teacher reads them, by teacher and student",
        )


def _check_ids(about: dict[str, Any], dataset: Dataset, folder: Path) -> None:
    """Raises UsageError for another padding token, and texts longer than the teacher takes."""
    tokens, length = dataset.input.tokens, dataset.input.shape[0]
    assert tokens is not None
    padding = about.get("pad_token_id")
    if padding is not None and padding != tokens.padding:
        raise UsageError(
            f"pads with id {padding}, and the tokenizer with {tokens.padding}",
            where=str(folder / _CONFIG),
            fix="make pad_token_id there and the tokenizer's padding token the same",
        )
    most = about.get("max_position_embeddings")
    # RoBERTa counts positions from behind the padding id.
    most = most - padding - 1 if most and about.get("model_type") in _SHIFTED else most
    if most and length > most:
        raise UsageError(
            f"the teacher takes {most} tokens at most, not {length}",
            where="data.text.max_length",
            fix=f"should be {most} or less",
        )


_SHIFTED = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")


def _names(about: dict[str, Any]) -> list[str] | None:
    """The names in `id2label`; None where they are transformers' LABEL_0, LABEL_1, …"""
    given = about.get("id2label") or {}
    names = [str(given[key]) for key in sorted(given, key=int)]
    default = [f"LABEL_{number}" for number in range(len(names))]
    return None if names == default else names
