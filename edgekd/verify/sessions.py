"""Opening and feeding a file, with errors that say which file, in which runtime, and what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import StageError, UsageError
from edgekd.export.parts import FORMATS, model_parts
from edgekd.profile.device.runtimes import RUNTIMES, Session, load

if TYPE_CHECKING:
    from edgekd.profile.device.runtimes import Inputs


def runtimes_for(format: str, *, all: bool = False) -> list[str]:
    """The runtimes that a file of this format is meant for; with `all` every one that opens it."""
    return [
        name
        for name, runtime in RUNTIMES.items()
        if format in runtime.formats or (all and format in runtime.also)
    ]


def open_session(runtime: str, path: Path, *, precision: str = "f32", threads: int = 1) -> Session:
    """Load a model file.

    Raises StageError when a part is missing, lies outside its folder or is no model, or when the
    runtime refuses it; ValueError when the runtime does not compute in that precision.
    """
    where = f"{path} in {runtime}"
    try:
        if path.suffix in FORMATS:
            model_parts(path)
        return load(runtime, path, threads=threads, precision=precision)
    except ValueError:
        raise
    except UsageError as error:
        raise StageError(error.what, where=error.where, fix=error.fix or _AGAIN) from None
    except Exception as error:
        raise StageError(f"cannot be opened: {one_line(error)}", where=where, fix=_AGAIN) from None


def outputs(session: Session, x: Inputs, batch: int, *, where: str) -> np.ndarray:
    """The first output for all of `x`, fed `batch` at a time, as float32.

    Raises StageError when the runtime fails, as for inputs of another shape than the file takes.
    """
    named = x if isinstance(x, dict) else {"": x}
    count = len(next(iter(named.values())))
    chunks = []
    for start in range(0, count, batch):
        chunk = {name: values[start : start + batch] for name, values in named.items()}
        feed = chunk if isinstance(x, dict) else chunk[""]
        size = len(next(iter(chunk.values())))
        try:
            found = session.run(feed)[0]
            # OpenVINO may take inputs of a shape that the file does not, and give nothing.
            if found.ndim == 0 or len(found) != size:
                raise RuntimeError(f"the output has the shape {found.shape}")
        except Exception as error:
            shapes = ", ".join(str(values.shape) for values in chunk.values())
            raise StageError(
                f"fails for inputs of shape {shapes}: {one_line(error)}", where=where
            ) from None
        chunks.append(found)
    return np.concatenate(chunks).astype(np.float32, copy=False)


def one_line(error: BaseException) -> str:
    """What a runtime says, in one line: the first that is not a place in its source code.

    Of what OpenVINO could not convert, every operator and why.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    text = _unconverted(str(error)) or (told[0][:300] if told else "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unconverted(text: str) -> str:
    """Below a headline that names none OpenVINO lists operators, each with what went wrong last."""
    unknown = [f"no conversion of operator {name}" for name in _UNKNOWN.findall(text)]
    failed = [
        f"operator {name}: {cause.strip().splitlines()[-1]}"
        for name, cause in _FAILED.findall(text)
        if cause.strip()
    ]
    return "; ".join(unknown + failed)[:1000]


_UNKNOWN = re.compile(r"^-- No conversion rule found for operations: (.+)$", re.M)
_FAILED = re.compile(
    r"^-- (\S+) with a message:\n(.*?)(?=^-- \S+ with a message:|^Summary:|\Z)", re.M | re.S
)
_AGAIN = (
    "it was damaged, or the runtime cannot execute this network; "
    "export it again (edgekd export --force)"
)
