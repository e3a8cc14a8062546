"""Why a module cannot be exported: the operator, the module, the line of the user's code, what to try."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_PACKAGES = ("torch", "onnxscript", "onnx_ir", "onnx", "openvino", "sympy")
_VALUES = (
    "what it does depends on the values of a tensor, not only on shapes",
    "replace the branch by torch.where or torch.cond, and sizes taken from values by fixed ones",
)
_SIZES = (
    "it works for one size only of what export.dynamic leaves free",
    "take that size out of export.dynamic, or compute shapes from x.shape in the model",
)
# Class of the exception to (what is wrong, what to try).
_KNOWN = {
    "GuardOnDataDependentSymNode": _VALUES,
    "DataDependentOutputException": _VALUES,
    "DynamicOutputShapeException": (
        "the shape of a result depends on the values of a tensor",
        "replace it by an operator whose result has a fixed shape, such as torch.where with three arguments",
    ),
    "ConstraintViolationError": _SIZES,
    "UnsupportedOperatorException": (
        "PyTorch cannot trace this operator",
        "write it with other PyTorch operators",
    ),
    "DispatchError": (
        "ONNX has no such operator, and PyTorch cannot take it apart",
        "write it with other PyTorch operators, or move it out of the model; "
        "a newer export.opset may know it",
    ),
}
_NUMPY = "keep to PyTorch operators in forward: numpy and Python numbers cannot be traced"


@dataclass(frozen=True)
class Failure:
    """`reason` in one line; `module` is "blocks.1 (Gate)", `line` "file.py:5"; None where unknown."""

    reason: str
    operator: str | None
    module: str | None
    line: str | None
    advice: str | None

    @property
    def place(self) -> str:
        """Where in the user's model."""
        return ", ".join(part for part in (self.module, self.line) if part)


def explain(error: BaseException, module: nn.Module) -> Failure:
    """Find the user's part in what PyTorch or its ONNX exporter raised for `module`."""
    chain = list(_chain(error))
    node = _innermost_node(chain)
    operator: str | None
    if node is not None:
        operator, where, line = str(node.target), _node_module(node, module), _node_line(node)
    else:
        operator, where, line = _operator(chain), *_frame_place(chain, module)
    known = next((_KNOWN[n] for e in chain for n in _names(e) if n in _KNOWN), None)
    text = _first_line(chain[-1])
    if "Constraints violated" in text or "marked dynamic" in text:
        known = _SIZES
    if known is None:
        advice = _NUMPY if "numpy" in text else None
        reason = f"{type(chain[-1]).__name__}: {text}" if text else type(chain[-1]).__name__
        return Failure(
            f"{operator}: {reason}" if operator else reason, operator, where, line, advice
        )
    reason, what = known
    return Failure(f"{operator}: {reason}" if operator else reason, operator, where, line, what)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """From the outermost exception to its first cause."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _names(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _frames(chain: list[BaseException]) -> list[tuple[FrameType, int]]:
    """Of all exceptions, the innermost last."""
    return [pair for error in chain for pair in traceback.walk_tb(error.__traceback__)]


def _innermost_node(chain: list[BaseException]) -> torch.fx.Node | None:
    """What was being translated, if the module was traced and its graph could not be translated."""
    from torch.fx import Node

    for frame, _ in reversed(_frames(chain)):
        node = frame.f_locals.get("node")
        if isinstance(node, Node) and node.op == "call_function":
            return node
    return None


def _node_module(node: torch.fx.Node, module: nn.Module) -> str | None:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    path = str(stack[-1][0])
    inside = dict(module.named_modules()).get(path)
    return _module_name(path, inside) if inside is not None else path


def _node_line(node: torch.fx.Node) -> str | None:
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    users = [f"{file}:{line}" for file, line in lines if not _is_library(file)]
    return users[-1] if users else None


def _operator(chain: list[BaseException]) -> str | None:
    for error in reversed(chain):
        function: Any = getattr(error, "func", None)
        if function is not None:
            return str(function)
    return None


def _frame_place(chain: list[BaseException], module: nn.Module) -> tuple[str | None, str | None]:
    """The innermost of the module's parts that was running, and the innermost line of its code."""
    paths = {id(part): path for path, part in module.named_modules()}
    where = line = None
    for frame, number in _frames(chain):
        part = frame.f_locals.get("self")
        if id(part) in paths:
            where = _module_name(paths[id(part)], part)
            line = line if _is_library(frame.f_code.co_filename) else ""
        if where is not None and not _is_library(frame.f_code.co_filename):
            line = f"{frame.f_code.co_filename}:{number}"
    return where, line or None


def _module_name(path: str, part: Any) -> str:
    return f"{path} ({type(part).__name__})" if path else type(part).__name__


def _is_library(file: str) -> bool:
    """Code of PyTorch and the converters is not where the user can change anything."""
    parts = Path(file).parts
    if "site-packages" not in parts:
        return file.startswith("<")
    return parts[parts.index("site-packages") + 1] in _PACKAGES


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
