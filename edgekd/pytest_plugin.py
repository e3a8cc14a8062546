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

    def check(model: str | os.PathLike[str], **arguments: Any) -> None:
        check_file(Path(model), folder=tmp_path, **arguments)

    return check


def check_file(
    model: Path,
    *,
    folder: Path,
    inputs: np.ndarray,
    target: str = "local",
    max_seconds: float = 10.0,
    on_inconclusive: Literal["fail", "skip", "pass"] = "fail",
    **limits: str,
) -> None:
    """Measure a .onnx or .xml file with `inputs` (n, …) float32 at batch n, and check its limits.

    `limits` are any of p50, p90, p95, p99 ("20 ms"), memory and size ("8 MiB"): upper ones, held against
    intervals as `edgekd gate` does. `folder` is for temporary files.
    Raises AssertionError for a broken limit; what is undecided fails, skips or passes.
    Raises UsageError for an unknown target, limit or file, StageError when it cannot be measured.
    """
    from edgekd.config.schema import Budget, Gate, Profile
    from edgekd.gate.budget import check_budgets

    unknown = sorted(set(limits) - set(_LIMITS))
    if unknown or not limits:
        raise TypeError(f"limits should be some of {', '.join(_LIMITS)}, not {unknown or 'none'}")
    gate = Gate(budgets=[Budget(metric=_LIMITS[k], max=v) for k, v in limits.items()])
    settings = Profile(max_seconds=max_seconds, min_seconds=min(0.5, max_seconds))
    found = _figures(model, inputs, target, settings, folder)
    report = check_budgets(gate, found)
    texts = "\n".join(check.text for check in report.checks if check.verdict != "pass")
    if report.verdict == "fail":
        raise AssertionError(f"{model}: {texts}")
    if report.verdict == "inconclusive":
        if on_inconclusive == "skip":
            pytest.skip(f"inconclusive: {texts}")
        assert on_inconclusive == "pass", f"{model}: inconclusive: {texts}"


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
