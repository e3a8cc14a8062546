"""From `model: TEXT` in the configuration to a network."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekd.artifacts import sha256_file
from edgekd.errors import UsageError
from edgekd.models.pruned import PRUNED, Pruned, resize, start_file
from edgekd.registry import suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekd.results import Tokens

_ZOO = Path(__file__).parent / "zoo"
_FORMS = "should be zoo:NAME, package.module:factory or path/to/file.py:factory"


def build(
    model: str,
    args: dict[str, Any],
    *,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    base: Path,
    tokens: Tokens | None = None,
    where: str = "model",
    start: bool = True,
) -> nn.Module:
    """The untrained network `model` names, with initial weights from `seed` alone.

    A pruned network starts from the weights that were left of the whole one, unless `start` is False: who
    has other weights for it does not need them. A factory of the user's gets `args`, and those of
    `num_classes`, `in_channels` and `input_shape` that it has parameters for; where inputs are `tokens`,
    any factory gets `vocabulary` and `padding` too. Modules and files are looked for from `base` too.
    Raises UsageError whose place is `where` (a configuration key) and, for an exception in the
    factory, the line it came from.
    """
    import torch

    place = f"{where} {model}"
    if model == PRUNED:
        return _pruned(
            args, input_shape=input_shape, classes=classes, seed=seed, base=base, tokens=tokens,
            where=where, start=start,
        )  # fmt: skip
    kind, name = _parse(model, where)
    offered = {"num_classes": classes, "in_channels": input_shape[0], "input_shape": input_shape}
    told = {} if tokens is None else tokens.model_dump()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if kind == "zoo":
                factory = _zoo(name)
                args = {**_accepted(factory, told), **args}
                module = _call(factory, (input_shape, classes), args, place)
            else:
                factory = _import(kind, name, base, where)
                module = _call(factory, (), {**_accepted(factory, offered | told), **args}, place)
            _make_lazy_layers(module, input_shape, tokens)
        except UsageError as error:
            raise UsageError(error.what, where=error.where or place, fix=error.fix) from None
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"gives a {type(module).__name__}; should give a torch.nn.Module",
            where=place,
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            "gives a module of TorchScript, which can be neither looked into nor exported",
            where=place,
            fix="give the module that it was made from",
        )
    return module


def _make_lazy_layers(module: Any, input_shape: tuple[int, ...], tokens: Tokens | None) -> None:
    """Layers that find their shapes with the first inputs find them now, with weights from the seed."""
    import torch
    from torch.nn.parameter import is_lazy

    if isinstance(module, torch.nn.Module) and any(map(is_lazy, module.parameters())):
        # What cannot take these inputs is told by `check`.
        with torch.no_grad(), contextlib.suppress(Exception):
            module.eval()(example(input_shape, tokens))
        module.train()


def _pruned(
    args: dict[str, Any],
    *,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    base: Path,
    tokens: Tokens | None,
    where: str,
    start: bool,
) -> nn.Module:
    """The whole network, made smaller as its spec says."""
    import torch

    from edgekd.models.weights import load_weights

    spec = Pruned.of(args, where)
    module = build(
        spec.network, spec.args, input_shape=input_shape, classes=classes, seed=seed, base=base,
        tokens=tokens, where=f"{where} {PRUNED}: args.network", start=start,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resize(module, spec.sizes, where=f"{where} {PRUNED}: args.sizes")
    weights = start_file(args, base, where) if start else None
    if weights is not None:
        load_weights(module, weights)
    return module


def example(input_shape: tuple[int, ...], tokens: Tokens | None) -> Tensor:
    """Two samples of noise, always the same: (2, *input_shape) float32, or int64 ids."""
    import torch

    random = torch.Generator().manual_seed(0)
    if tokens is not None:
        return torch.randint(tokens.vocabulary, (2, *input_shape), generator=random)
    return torch.randn(2, *input_shape, generator=random)


def check(
    module: nn.Module,
    *,
    role: str,
    input_shape: tuple[int, ...],
    outputs: tuple[int, ...],
    tokens: Tokens | None = None,
) -> None:
    """Run two samples of zeros through it. Raises UsageError unless it gives (2, *outputs) logits.

    Where inputs are `tokens`, one is of the largest id: a network of fewer is told by name.
    """
    import torch

    inputs = torch.zeros(2, *input_shape)
    if tokens is not None:
        inputs = inputs.to(torch.int64)
        _check_vocabulary(module, role, tokens)
        inputs[1] = tokens.vocabulary - 1

    was_training = module.training
    module.eval()
    try:
        # Not inference_mode: what a lazy layer makes of itself is trained later.
        with torch.no_grad():
            logits = module(inputs)
    except Exception as error:
        raise UsageError(
            f"cannot take inputs of shape {('n', *input_shape)}: {line_of(error)}", where=role
        ) from None
    finally:
        module.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise UsageError(
            f"gives a {type(logits).__name__}; should give one tensor of logits {_named(outputs)}",
            where=role,
        )
    if logits.shape != (2, *outputs):
        raise UsageError(
            f"gives logits of shape {_named(logits.shape[1:])}, "
            + (
                f"but the data has {outputs[0]} {'classes' if outputs[0] > 1 else 'number'}"
                if len(outputs) == 1
                else f"but this data needs {_named(outputs)}: a class for every pixel"
            ),
            where=role,
            fix=_fix(tuple(logits.shape[1:]), outputs),
        )


def _fix(given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(given) != len(wanted):
        return "choose a network for this task"
    if given[0] == wanted[0]:
        return "its outputs should be as high and wide as its inputs: end it by upsampling"
    return f"give it {wanted[0]} outputs (args), so that teacher, student and data agree"


def _named(shape: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, shape))})"


def _check_vocabulary(module: nn.Module, role: str, tokens: Tokens) -> None:
    """Raises UsageError where the first embedding, that of the ids, has fewer rows than there are ids."""
    from torch import nn

    found = next((part for part in module.modules() if isinstance(part, nn.Embedding)), None)
    if found is not None and found.num_embeddings < tokens.vocabulary:
        raise UsageError(
            f"knows {found.num_embeddings} tokens, and the tokenizer has {tokens.vocabulary}",
            where=role,
            fix="both must be made for each other: check data.text.tokenizer, or leave vocabulary out "
            "of args",
        )


def fingerprint(
    model: str, base: Path, *, where: str = "model", args: dict[str, Any] | None = None
) -> str:
    """Hash of the file that defines `model`, found without importing torch or the module.

    What that file imports in turn is not looked at. A pruned network is defined by the file of the whole
    one and the weights it starts from, which its `args` name. Raises UsageError when there is no such
    file.
    """
    if model == PRUNED:
        spec = Pruned.of(args or {}, where)
        weights = start_file(args or {}, base, where)
        whole = fingerprint(spec.network, base, where=f"{where} {PRUNED}", args=spec.args)
        return whole if weights is None else f"{whole} {sha256_file(weights)}"
    kind, name = _parse(model, where)
    if kind == "zoo":
        digest = hashlib.sha256()
        for path in sorted(_ZOO.glob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()
    return sha256_file(_source_file(kind, name, base, where))


def function(text: str, base: Path, *, where: str) -> Callable[..., Any]:
    """What `package.module:name` or `path/to/file.py:name` names.

    Raises UsageError, with the line, when it cannot be imported or called.
    """
    kind, name = _parse(text, where)
    return _import(kind, name, base, where)


def _parse(model: str, where: str) -> tuple[str, str]:
    """("zoo", NAME), (module, factory) or (path.py, factory)."""
    kind, separator, name = model.rpartition(":")
    if not separator or not kind or not name:
        raise UsageError(f"cannot read {model!r}", where=where, fix=_FORMS)
    return kind, name


def _source_file(kind: str, name: str, base: Path, where: str) -> Path:
    if kind.endswith(".py"):
        path = base / Path(kind).expanduser()
        if not path.is_file():
            raise UsageError(f"no such file: {path}", where=where)
        return path
    if not all(part.isidentifier() for part in kind.split(".")):
        raise UsageError(f"cannot read {kind}:{name}", where=where, fix=_FORMS)
    parts = kind.split(".")
    for folder in _search_path(base):
        stem = folder.joinpath(*parts)
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if path.is_file():
                return path
    raise UsageError(
        f"no module {kind}",
        where=where,
        fix=f"looked in {base} and in Python's own path; is the package installed?",
    )


def _search_path(base: Path) -> list[Path]:
    return [base, *(Path(folder or ".") for folder in sys.path)]


def _zoo(name: str) -> Callable[..., Any]:
    from edgekd.models.network import NETWORKS

    return NETWORKS.get(name).build


def _import(kind: str, name: str, base: Path, where: str) -> Callable[..., Any]:
    path = _source_file(kind, name, base, where)
    try:
        with _importable(base, path.parent):
            module = _load_file(path) if kind.endswith(".py") else importlib.import_module(kind)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"importing {path} failed: {line_of(error)}", where=_frame(error, path)
        ) from None
    loaded = getattr(module, "__file__", None)
    if loaded is None or Path(loaded).resolve() != path.resolve():
        raise UsageError(
            f"another module is called {kind} ({loaded or 'built in'}), so that {path} is not found",
            where=where,
            fix=f"name the file instead: {path.name}:{name}",
        )
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = suggestion(name, known) if known else ""
        raise UsageError(f"{path.name} has no {name!r} that can be called{hint}", where=where)
    return factory  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    """A .py file as a module of its own name, whatever else is called so."""
    name = f"edgekd_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    before = sys.path[:]
    sys.path[:0] = [str(folder) for folder in dict.fromkeys(folders)]
    try:
        yield
    finally:
        sys.path[:] = before


def _accepted(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """What of `offered` the factory has a parameter of that name for."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in offered.items() if name in parameters}


def _call(
    factory: Callable[..., Any], positional: tuple[Any, ...], args: dict[str, Any], place: str
) -> Any:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(*positional, **args)
        except TypeError as error:
            taken = list(signature.parameters)[len(positional) :]
            raise UsageError(
                str(error),
                where=place,
                fix=f"it takes: {', '.join(taken) or 'no arguments'}",
            ) from None
    try:
        return factory(*positional, **args)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"cannot be built with these args: {line_of(error)}",
            where=place,
            fix=f"it failed at {_frame(error, None)}; its args were {args}",
        ) from None


def line_of(error: BaseException) -> str:
    """Its kind and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _frame(error: BaseException, path: Path | None) -> str:
    """file:line of the innermost frame, in `path` if one is there."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if path is not None and Path(f.filename) == path]
    frame = (inside or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"
