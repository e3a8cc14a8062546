"""OpenVINO's `benchmark_app`, C++ or Python: it gives a run's median, not the calls.

So that a sample is the median of one whole run, and says so (`SampleKind`).
Source of the formats: samples/cpp/benchmark_app/main.cpp, statistics_report.cpp of OpenVINO.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgekd.errors import StageError
from edgekd.profile.native.tool import Figures, Job, printed, seconds, tool
from edgekd.results import SampleKind

_PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_UNITS = {"us": 1e-6, "ms": 1e-3}
# How much of a median its last printed digit may be.
_RESOLUTION = 0.01


@tool("benchmark_app")
class BenchmarkApp:
    """CPU plug-in, one stream, synchronous, inference only; the tool fills the inputs at random."""

    runtime = "openvino"
    kind: SampleKind = "median"
    report = "benchmark_report.json"

    def one_node(self, folder: Path) -> list[Path]:
        """One ReLU."""
        import openvino
        from openvino import opset13

        x = opset13.parameter([1], np.float32, name="x")
        x.output(0).set_names({"x"})
        openvino.save_model(openvino.Model([opset13.relu(x)], [x]), folder / "one_node.xml")
        return [folder / "one_node.xml", folder / "one_node.bin"]

    def describe(self, path: Path) -> tuple[str, bool]:
        """The precision is told by the tool, after compiling."""
        import openvino

        return "", bool(openvino.Core().read_model(path).is_dynamic())

    def beside(self, inputs: np.ndarray) -> dict[str, bytes]:
        """Nothing. Raises StageError for token ids: random ones are in no vocabulary."""
        if inputs.dtype.kind != "f":
            raise StageError(
                "benchmark_app fills the inputs at random, which token ids cannot be",
                where="profile.targets",
                fix="use the tool onnxruntime_perf_test for this target",
            )
        return {}

    def arguments(self, job: Job) -> list[str]:
        """Single dashes and values after `=` are understood by both programs."""
        shape = f"[{','.join(map(str, job.shape))}]"
        return [
            "-m", job.model, "-d", "CPU", "-hint", "none", "-nstreams", "1",
            "-nthreads", str(job.threads), "-infer_precision", job.precision, "-api", "sync",
            "-niter", str(job.calls), "-inference_only=true",
            "-report_type", "no_counters", "-report_folder", job.folder, "-json_stats=true",
            *(["-data_shape", shape] if job.dynamic else []),
        ]  # fmt: skip

    def figures(self, job: Job, printed_text: str, report: bytes) -> Figures:
        """Median from the report where it is given in full, else as printed, if that is enough."""
        count = printed([r"Count: +(\d{1,12}) iterations"], printed_text, "count of iterations")
        if int(count) != job.calls:
            raise StageError(f"the tool made {count} calls of {job.calls}")
        precision = printed(
            [r"INFERENCE_PRECISION_HINT: *(?:<Type: ')?(\w+)"], printed_text, "executed precision"
        )
        read = printed([r"Read model took ([\d.]{1,20}) ms"], printed_text, "read time")
        compiled = printed([r"Compile model took ([\d.]{1,20}) ms"], printed_text, "compile time")
        first = printed([r"First inference took ([\d.]{1,20}) ms"], printed_text, "first inference")
        build = printed([r"Build \.+ ([\w.+-]{1,80})"], printed_text, "build number")
        median = _median(printed_text, report)
        return Figures(
            samples=np.array([median]),
            median=median,
            load=seconds(read, "a read time", 1e-3) + seconds(compiled, "a compile time", 1e-3),
            first=seconds(first, "a first inference", 1e-3),
            precision=_PRECISIONS.get(precision, precision),
            version=build.partition("-")[0],
        )


def _median(text: str, report: bytes) -> float:
    try:
        value = json.loads(report)["execution_results"]["latency_median"]
    except (ValueError, KeyError, TypeError, RecursionError):
        value = None
    if isinstance(value, int | float) and value > 0:
        return seconds(value, "a median latency", 1e-3)
    number = printed([r"Median: +([\d.]{1,20} [um]s)\b"], text, "median latency")
    digits, unit = number.split()
    decimals = len(digits.partition(".")[2])
    median = seconds(digits, "a median latency", _UNITS[unit])
    if median < 10**-decimals * _UNITS[unit] / _RESOLUTION:
        raise StageError(
            f"benchmark_app reports a median of {number}: too few digits for this model",
            fix="use its C++ program or a release from 2026 on, or a larger batch",
        )
    return median
