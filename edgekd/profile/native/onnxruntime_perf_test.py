"""ONNX Runtime's `onnxruntime_perf_test`: every call's latency, from its result file.

Source of the formats: onnxruntime/test/perftest (command_args_parser.cc, performance_runner.cc).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from edgekd.errors import StageError
from edgekd.profile.native.tool import Figures, Job, printed, seconds, tool
from edgekd.results import SampleKind

# model name, seconds, peak memory, CPU usage, number of the call
_LINE = re.compile(rb"[^,]{0,255},([0-9.eE+-]{1,32}),\d{1,19},-?\d{1,9},(\d{1,9})")
# The calls that a run begins with, left out: caches and clocks settle.
_WARM_UP_SHARE = 0.1


@tool("onnxruntime_perf_test")
class OnnxRuntimePerfTest:
    """Sequential, CPU execution provider; the inputs are a test data set beside the model."""

    runtime = "onnxruntime"
    kind: SampleKind = "call"
    report = "calls.csv"

    def one_node(self, folder: Path) -> list[Path]:
        """One Identity node."""
        from edgekd.profile.device.runtimes.onnxruntime import ONE_NODE

        path = folder / "one_node.onnx"
        path.write_bytes(ONE_NODE)
        return [path]

    def describe(self, path: Path) -> tuple[str, bool]:
        """ONNX Runtime computes in the types of the file."""
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        kind = graph.input[0].type.tensor_type
        names = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.FLOAT16: "f16",
                 onnx.TensorProto.BFLOAT16: "bf16"}  # fmt: skip
        dynamic = any(not d.HasField("dim_value") for d in kind.shape.dim)
        return names.get(kind.elem_type, "unknown"), dynamic

    def beside(self, inputs: np.ndarray) -> dict[str, bytes]:
        """The first input as a TensorProto."""
        from onnx import numpy_helper

        return {"test_data_set_0/input_0.pb": numpy_helper.from_array(inputs).SerializeToString()}

    def arguments(self, job: Job) -> list[str]:
        """`-r` counts calls; threads inside and between operators are pinned."""
        return [
            "-e", "cpu", "-m", "times", "-r", str(job.calls), "-x", str(job.threads), "-y", "1",
            job.model, f"{job.folder}/{self.report}",
        ]  # fmt: skip

    def figures(self, job: Job, printed_text: str, report: bytes) -> Figures:
        """One line per call, in order, as many as were asked for."""
        lines = report.splitlines()
        if len(lines) != job.calls:
            raise StageError(f"the result file has {len(lines)} lines for {job.calls} calls")
        samples = np.empty(job.calls)
        for i, line in enumerate(lines):
            match = _LINE.fullmatch(line)
            if match is None or int(match[2]) != i:
                raise StageError(f"line {i + 1} of the result file is {line[:80]!r}")
            samples[i] = seconds(match[1].decode(), "a latency")
        if not samples.all():
            raise StageError("the result file has a latency of 0")
        load = printed([r"^Session creation time cost: *(\S+) s"], printed_text, "session creation")
        first = printed([r"^First inference time cost: *(\S+) ms"], printed_text, "first inference")
        kept = samples[int(np.ceil(_WARM_UP_SHARE * job.calls)) :]
        return Figures(
            samples=kept,
            median=float(np.median(kept)),
            load=seconds(load, "a session creation"),
            first=seconds(first, "a first inference", 1e-3),
            precision=job.precision,
            version="unknown",
        )
