"""A pytest fixture: `edgekd_budget("model.onnx", p50="20 ms")` measures a file and holds it to limits.

Loaded by pytest through the entry point `pytest11`; imports nothing heavy until it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    import numpy as np

    from edgekd.config.schema import Budget

_RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
_LIMITS = {
    "p50": "latency_p50",
    "p90": "latency_p90",
    "p95": "latency_p95",
    "p99": "latency_p99",
    "memory": "memory",
    "size": "size",
}


@pytest.fixture
def edgekd_budget(tmp_path: Path) -> Callable[..., None]:
    """The function `check_file`, which fails the test when a budget is broken."""

    def check(model: str | os.PathLike[str], target: str = "local", **arguments: Any) -> None:
        check_file(Path(model), target, folder=tmp_path, **arguments)

    return check


def check_file(
    model: Path,
    target: str = "local",
    *,
    folder: Path,
    inputs: np.ndarray | None = None,
    max_seconds: float = 10.0,
    on_inconclusive: Literal["fail", "skip", "pass"] = "fail",
    **limits: str,
) -> None:
    """Measure a .onnx or .xml file with `inputs` (n, …) float32 at batch n, and check its limits.

    `limits` are any of p50, p90, p95, p99 ("20 ms"), memory and size ("8 MiB"): upper ones, held against
    intervals as `edgekd gate` does. Without `inputs` they are random, of the file's own shape, one sample.
    `folder` is for temporary files. Latency and throughput are measured for up to `max_seconds` each; a
    limit on time that is undecided then once more, for up to twice as long.
    Raises AssertionError for a broken limit; what is undecided fails, skips or passes.
    Raises UsageError for an unknown target, limit or file, StageError when it cannot be measured.
    """
    from edgekd.config.schema import Gate, Profile
    from edgekd.gate.again import TIMED, longer, width_to_decide
    from edgekd.gate.budget import check_budgets

    unknown = sorted(set(limits) - set(_LIMITS))
    if unknown or not limits:
        raise TypeError(f"limits should be some of {', '.join(_LIMITS)}, not {unknown or 'none'}")
    gate = Gate(budgets=[_budget(name, limit) for name, limit in limits.items()])
    settings = Profile(max_seconds=max_seconds, min_seconds=min(0.5, max_seconds))
    if inputs is None:
        inputs = _random_inputs(model)
    found = _figures(model, inputs, target, settings, folder)
    report = check_budgets(gate, found)
    open_ = [c for c in report.checks if c.verdict == "inconclusive" and c.metric in TIMED]
    if open_:
        settings = longer(settings, 4 * max_seconds, 1, width_to_decide(gate, open_))
        newer = _figures(model, inputs, target, settings, folder)
        found = [f for f in found if f.metric not in TIMED] + [
            f for f in newer if f.metric in TIMED
        ]
    report = check_budgets(gate, found)
    texts = "\n".join(check.text for check in report.checks if check.verdict != "pass")
    if report.verdict == "fail":
        raise AssertionError(f"{model}: {texts}")
    if report.verdict == "inconclusive":
        if on_inconclusive == "skip":
            pytest.skip(f"inconclusive: {texts}")
        assert on_inconclusive == "pass", f"{model}: inconclusive: {texts}"


def _budget(name: str, limit: str) -> Budget:
    from pydantic import ValidationError

    from edgekd.config.schema import Budget
    from edgekd.errors import UsageError

    try:
        return Budget(metric=_LIMITS[name], max=limit)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(problem, where=f"edgekd_budget: {name}") from None


def _random_inputs(model: Path) -> np.ndarray:
    """One sample of the shape that the file says it takes. Raises UsageError where it leaves that open."""
    import numpy as np

    from edgekd.errors import UsageError
    from edgekd.export.parts import model_parts

    model_parts(model)
    try:
        shape, type_ = _input_of(model)
    except Exception as error:
        raise UsageError(
            f"cannot be opened: {(str(error).splitlines() or [''])[0][:300]}", where=str(model)
        ) from None
    shape = [1, *shape[1:]] if shape and shape[0] is None else shape
    if None in shape or type_ not in ("tensor(float)", "f32"):
        written = ", ".join("?" if side is None else str(side) for side in shape)
        raise UsageError(
            f"its first input is {type_} of shape ({written}): what it takes cannot be made up",
            where=str(model),
            fix="give edgekd_budget(inputs=...), float32 of shape (n, …)",
        )
    random = np.random.default_rng(0)
    return random.standard_normal(tuple(side or 1 for side in shape), dtype=np.float32)


def _input_of(model: Path) -> tuple[list[int | None], str]:
    """Shape, None where any size goes, and type of the first input."""
    if model.suffix == ".onnx":
        import onnxruntime

        first = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()
        sides = [side if isinstance(side, int) else None for side in first[0].shape]
        return sides, first[0].type
    import openvino

    port = openvino.Core().read_model(model).inputs[0]
    dimensions = port.get_partial_shape()
    known = [d.get_length() if d.is_static else None for d in dimensions]
    return known, port.get_element_type().get_type_name()


def _figures(
    model: Path, inputs: np.ndarray, target: str, settings: Any, folder: Path
) -> list[Any]:
    from edgekd.export.parts import model_parts
    from edgekd.gate.figures import measured
    from edgekd.profile.measure import profile
    from edgekd.profile.targets import find
    from edgekd.progress import Silent
    from edgekd.results import ExportedFile

    parts = model_parts(model)
    runtime = _RUNTIMES[model.suffix]
    device = find(target, Path.cwd(), where="edgekd_budget")
    file = ExportedFile(
        role="student",
        format="onnx" if runtime == "onnxruntime" else "openvino",
        path=str(model.resolve()),
        files=tuple(map(str, parts)),
        size=sum(part.stat().st_size for part in parts),
        seconds=0.0,
    )
    settings = settings.model_copy(update={"batch_size": len(inputs), "operators": False})
    report, _, _ = profile(
        (file,),
        [device.model_copy(update={"runtimes": [runtime]})],
        settings,
        inputs,
        root=folder,
        progress=Silent(),
    )
    return list(measured(report))
