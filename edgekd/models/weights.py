"""Weights from and to files, without ever running what is in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgekd.artifacts import write_bytes
from edgekd.errors import UsageError

# Under what the weights are found in common checkpoints, and what wrappers put before their names.
_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a safetensors file, atomically. Tied weights are stored once per name."""
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    write_bytes(path, save(state))


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file or a checkpoint that `weights_only=True` accepts.

    Checkpoints may wrap the weights (`state_dict`, …) and prefix their names (`module.`, …).
    Raises UsageError for pickles, other files, and weights that do not fit or are not finite.
    """
    state = _unprefixed(_read(path), set(module.state_dict()))
    expected = module.state_dict()
    # Checkpoints of old PyTorch versions lack these counters, which inference does not use.
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in expected]
    misshapen = [n for n, v in expected.items() if n in state and state[n].shape != v.shape]
    if missing or unexpected or misshapen:
        raise UsageError(
            "the weights do not fit the network: "
            + _misfit(state, expected, missing, unexpected, misshapen),
            where=str(path),
            fix="check the model and its args, or the file",
        )
    broken = not_finite(state)
    if broken is not None:
        raise UsageError(
            f"{broken!r} has values that are not finite",
            where=str(path),
            fix="these weights compute nothing: train again, or take an earlier file",
        )
    module.load_state_dict(state, strict=False)


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first weights that have NaN or infinite values, if any."""
    return next(
        (n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()), None
    )


def _misfit(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> str:
    parts = []
    if misshapen:
        name = misshapen[0]
        parts.append(
            f"{name!r} is {tuple(state[name].shape)} in the file and "
            f"{tuple(expected[name].shape)} in the network"
        )
    if missing:
        parts.append(f"{len(missing)} are missing, such as {missing[0]!r}")
    if unexpected:
        parts.append(f"{len(unexpected)} are unknown, such as {unexpected[0]!r}")
    return "; ".join(parts)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError("no such file", where=str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"not a whole safetensors file: {error}", where=str(path)) from None
    return _weights_in(_checkpoint(path), path)


def _checkpoint(path: Path) -> Any:
    with path.open("rb") as file:
        # A zip archive or a pickle: anything else torch would take for a pickle too.
        if not file.read(2).startswith((b"PK", b"\x80")):
            raise UsageError("not a checkpoint", where=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise UsageError(f"not a checkpoint: {_first_line(error)}", where=str(path)) from None
        raise UsageError(
            "holds pickled Python objects, which could run code when loaded; it was not loaded",
            where=str(path),
            fix="where you trust the file, save only its weights: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        ) from None
    except Exception as error:
        # On bytes that are no checkpoint torch's reader raises whatever it stumbles over.
        raise UsageError(f"not a checkpoint: {_first_line(error)}", where=str(path)) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _weights_in(value: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in a checkpoint, however deep."""
    while isinstance(value, Mapping):
        if value and all(isinstance(v, Tensor) for v in value.values()):
            return {str(name): tensor for name, tensor in value.items()}
        inner = [value[key] for key in _KEYS if isinstance(value.get(key), Mapping)]
        if not inner:
            break
        value = inner[0]
    raise UsageError(
        "holds no mapping of names to tensors",
        where=str(path),
        fix=f"should be a state_dict, alone or under one of: {', '.join(_KEYS)}",
    )


def _unprefixed(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Without the prefixes that DataParallel, torch.compile and Lightning put before every name."""
    while state and not expected & state.keys():
        prefixes = [p for p in _PREFIXES if all(name.startswith(p) for name in state)]
        if not prefixes:
            break
        state = {name.removeprefix(prefixes[0]): value for name, value in state.items()}
    return state
