"""Sequence classifiers of Hugging Face `transformers`, as networks that take token ids alone."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.artifacts import read_json, write_json
from edgekd.data.tokenizer import INSTALL
from edgekd.errors import UsageError
from edgekd.models.weights import load_weights, not_finite

# How the network is built again, beside its model.safetensors.
CONFIG = "model.config.json"


class Classifier(nn.Module):
    """Ids (n, tokens) → logits (n, classes), in the data's order of classes.

    `order` are the columns of `model`'s logits, None where they are as the data's.
    """

    def __init__(self, model: nn.Module, padding: int, order: Sequence[int] | None) -> None:
        super().__init__()
        self.model, self.padding = model, padding
        self.order = None if order is None else list(order)

    def forward(self, ids: Tensor) -> Tensor:
        """All ids but `padding` are attended to; the first one always is."""
        place = torch.arange(ids.shape[1], device=ids.device)
        seen = (ids != self.padding) | (place == 0)
        logits: Tensor = self.model(input_ids=ids, attention_mask=seen.long()).logits
        return logits if self.order is None else logits[:, self.order]


def read(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A sequence classifier that `save_pretrained` wrote, and its configuration.

    Only safetensors are opened, and no code of the folder's. Raises UsageError for anything else.
    """
    transformers = package()
    place = f"teacher.model hf:{folder}"
    with _quiet():
        try:
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
            )
        except Exception as error:
            raise UsageError(
                f"transformers cannot open it: {_line(error)}",
                where=place,
                fix="it should be a sequence classifier that save_pretrained wrote, whose code is part "
                "of transformers",
            ) from None
    if info["mismatched_keys"]:
        name, stored, wanted = sorted(info["mismatched_keys"])[0]
        raise UsageError(
            f"config.json and the weights are of different networks: {name} is {list(stored)} in the file "
            f"and {list(wanted)} by the configuration",
            where=place,
            fix="save both anew, from one model, with save_pretrained",
        )
    wrong = sorted(map(str, info["missing_keys"]))
    if wrong:
        raise UsageError(
            f"its weights are not those of a {type(model).__name__}: {len(wrong)} are missing, such as "
            f"{wrong[0]!r}",
            where=place,
            fix="fine-tune it for this task first: a network without its classifier cannot teach",
        )
    broken = not_finite(model.state_dict())
    if broken is not None:
        raise UsageError(f"{broken!r} has values that are not finite", where=place)
    return model, model.config.to_dict()


def save_config(folder: Path, config: dict[str, Any], module: Classifier) -> None:
    """Write what `load` builds the network from."""
    about = {"transformers": config, "padding": module.padding, "order": module.order}
    # Through its own JSON: configurations may hold what only that knows to write.
    write_json(folder / CONFIG, json.loads(json.dumps(about, default=str)))


def load(folder: Path) -> nn.Module:
    """The network of `model.config.json` and `model.safetensors`, in evaluation mode."""
    transformers, about = package(), read_json(folder / CONFIG)
    with _quiet():
        config = transformers.AutoConfig.for_model(**about["transformers"])
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    module = Classifier(model.float(), about["padding"], about["order"])
    load_weights(module, folder / "model.safetensors")
    return module.eval()


def package() -> Any:
    """The package, imported. Raises UsageError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "teachers hf: need the package transformers", where="teacher.model", fix=INSTALL
        ) from None
    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its progress bars and warnings."""
    from transformers.utils import logging as theirs

    before, bars = logging.root.manager.disable, theirs.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
