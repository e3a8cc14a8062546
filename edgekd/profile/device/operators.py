"""Where the time of an inference goes, operator by operator: what the runtimes' own profilers say.

Times of many runs become one figure per operator. The profilers count in whole microseconds, so
that a median would be 0 or 1 for short operators: `midmean` keeps what lies between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def executed(
    name: str,
    type: str,
    *,
    kernel: str = "",
    seconds: float | None,
    inputs: list[str],
    outputs: list[str],
    origins: list[str],
) -> dict[str, Any]:
    """One operator of the graph that the runtime made of the file, in the order of execution.

    `inputs` and `outputs` name its tensors, `origins` the file's operators that the runtime says
    it came from; `seconds` is None where nothing was executed (such as a reshape in place).
    """
    return {
        "name": name, "type": type, "kernel": kernel, "seconds": seconds,
        "inputs": inputs, "outputs": outputs, "origins": origins,
    }  # fmt: skip


def midmean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half of `values` (runs, …) along their first axis."""
    import numpy as np

    ordered = np.sort(values, axis=0)
    quarter = len(ordered) // 4
    middle: np.ndarray = ordered[quarter : len(ordered) - quarter].mean(axis=0)
    return middle


def repeat(infer: Callable[[], object], seconds: float, *, least: int, most: int) -> list[float]:
    """Seconds of each call, for `seconds` but at least `least` and at most `most` calls."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (len(times) < most and time.perf_counter() < end):
        before = time.perf_counter()
        infer()
        times.append(time.perf_counter() - before)
    return times


def onnx_nodes(path: Path) -> list[dict[str, Any]]:
    """Name, type, inputs and outputs of every node of an ONNX file, read without the onnx package.

    Fields by number as in onnx.proto: ModelProto.graph 7, GraphProto.node 1, and of NodeProto
    input 1, output 2, name 3, op_type 4. Raises ValueError when it is no such file.
    """
    nodes = []
    for field, graph in _fields(memoryview(path.read_bytes())):
        if field != 7:
            continue
        for inner, node in _fields(graph):
            if inner == 1:
                texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
                for number, value in _fields(node):
                    if number in texts:
                        texts[number].append(str(value, "utf-8", "replace"))
                name, type = ("".join(texts[number]) for number in (3, 4))
                nodes.append({"name": name, "type": type, "inputs": texts[1], "outputs": texts[2]})
    return nodes


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of the length-delimited fields of a protobuf message; others are skipped."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        try:
            number, wire = divmod(varint(), 8)
            if wire == 0:
                varint()
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            elif wire == 2:
                length = varint()
                at += length
                yield number, message[at - length : at]
            else:
                raise ValueError(f"not a protobuf message: wire type {wire}")
        except IndexError:
            raise ValueError("not a protobuf message: it ends in the middle") from None
