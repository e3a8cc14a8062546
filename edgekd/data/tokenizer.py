"""Where a tokenizer lies, and how it cuts texts: what `tokenizers` reads, never code of a model hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.schema import Data
from edgekd.errors import UsageError
from edgekd.results import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
KEY = "data.text.tokenizer"
# What is told in errors where the extra is missing.
INSTALL = "pip install 'edgekd[text]'"
_PADS = ("[PAD]", "<pad>", "<|pad|>")


def tokenizer_file(text: str, base: Path) -> Path:
    """The tokenizer.json that `data.text.tokenizer` names. Raises UsageError where there is none."""
    path = base / Path(text).expanduser()
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UsageError(
                f"the folder has no {FILE}: {path}",
                where=KEY,
                fix="write one with transformers' AutoTokenizer(…, use_fast=True).save_pretrained",
            )
        return path / FILE
    if not path.is_file():
        raise UsageError(f"no such file or folder: {path}", where=KEY)
    return path


def located(config: Data, base: Path) -> Data:
    """The same configuration, its tokenizer as an absolute path."""
    if config.text.tokenizer is None:
        return config
    path = str(tokenizer_file(config.text.tokenizer, base).absolute())
    return config.model_copy(update={"text": config.text.model_copy(update={"tokenizer": path})})


def open_tokenizer(path: Path, max_length: int) -> tuple[Tokenizer, Tokens]:
    """It cuts texts to `max_length` and fills shorter ones up to it.

    Raises UsageError for a file that is none, without a padding token, or without the package.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("texts need the package tokenizers", where=KEY, fix=INSTALL) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise UsageError(
            f"is no tokenizer: {str(error).strip().splitlines()[0][:200]}", where=str(path)
        ) from None
    padding, token = _padding(tokenizer, path)
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_id=padding, pad_token=token)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return tokenizer, Tokens(vocabulary=size, padding=padding)


def free_length(tokenizer: str) -> str:
    """The same tokenizer.json, filling up to the longest text of a batch."""
    about = json.loads(tokenizer)
    about["padding"]["strategy"] = "BatchLongest"
    return json.dumps(about, ensure_ascii=False, indent=1)


def same_ids(one: str, other: str) -> bool:
    """Whether two tokenizer.json cut texts in the same way, whatever length they fill them up to."""
    return _meaning(one) == _meaning(other)


def _meaning(text: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(text)
    return {k: v for k, v in about.items() if k not in ("padding", "truncation", "version")}


def _padding(tokenizer: Tokenizer, path: Path) -> tuple[int, str]:
    """The id and the text of the padding token."""
    if tokenizer.padding:
        return tokenizer.padding["pad_id"], tokenizer.padding["pad_token"]
    names = [*_named_beside(path), *_PADS]
    for name in names:
        number = tokenizer.token_to_id(name)
        if number is not None:
            return number, name
    raise UsageError(
        "has no padding token",
        where=str(path),
        fix="set one with enable_padding, or as pad_token in tokenizer_config.json beside it",
    )


def _named_beside(path: Path) -> list[str]:
    """`pad_token` of the tokenizer_config.json that transformers writes."""
    try:
        about = json.loads(path.with_name("tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    token = about.get("pad_token") if isinstance(about, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return [token] if isinstance(token, str) else []
