"""ONNX Runtime on the CPU."""

from __future__ import annotations

import base64
import bisect
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..operators import executed, midmean, onnx_nodes, repeat
from . import runtime

if TYPE_CHECKING:
    import numpy as np

    from . import Inputs

# An ONNX model (opset 13) of one Identity node on a float of shape (1,).
ONE_NODE = base64.b64decode(
    "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0="
)
# Models (opset 13) of one node y = x·w on (n, n): MatMul of floats, MatMulInteger of uint8 by int8.
_MATMUL = base64.b64decode(
    "CAg6WwoRCgF4CgF3EgF5IgZNYXRNdWwSAW1aFQoBeBIQCg4IARIKCgMSAW4KAxIBbloVCgF3EhAKDggBEgoKAxIBbgoD"
    "EgFuYhUKAXkSEAoOCAESCgoDEgFuCgMSAW5CBAoAEA0="
)
_MATMUL_INTEGER = base64.b64decode(
    "CAg6YgoYCgF4CgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgFtWhUKAXgSEAoOCAISCgoDEgFuCgMSAW5aFQoBdxIQCg4IAxIK"
    "CgMSAW4KAxIBbmIVCgF5EhAKDggGEgoKAxIBbgoDEgFuQgQKABAN"
)
_PRODUCTS = {
    "f32": (_MATMUL, "float32", "float32"),
    "int8": (_MATMUL_INTEGER, "uint8", "int8"),
}
# The trace has half a kilobyte for each, which small devices must read back.
_MOST_EVENTS = 20_000
_PRECISIONS = {
    "tensor(float)": "f32", "tensor(float16)": "f16", "tensor(bfloat16)": "bf16",
    # Raw values, which the file itself converts, and token ids.
    "tensor(uint8)": "f32", "tensor(int64)": "f32",
}  # fmt: skip


@runtime("onnxruntime", formats=("onnx",))
class OnnxRuntime:
    """CPU execution provider. It computes in the types of the file, so that these are its precision."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        import onnxruntime

        self._session = _open(path, threads)
        self.compile_seconds: float | None = None
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self.precision = _PRECISIONS.get(self._session.get_inputs()[0].type, "unknown")
        if self.precision != precision:
            raise ValueError(
                f"onnxruntime executes this file in {self.precision}, not in {precision}"
            )
        self._value = onnxruntime.OrtValue
        self._binding: Any = None
        self._call: Any = None

    def set_inputs(self, x: Inputs) -> None:
        """Copy the inputs to ONNX Runtime and keep the outputs' memory for all calls."""
        import onnxruntime

        self._binding = self._session.io_binding()
        for name, values in self._named(x).items():
            self._binding.bind_ortvalue_input(name, self._value.ortvalue_from_numpy(values))
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        for name, value in zip(self._outputs, self._binding.get_outputs()):
            self._binding.bind_ortvalue_output(name, value)
        # What `run_with_iobinding` calls in the end. Its own checks, and options made for every call,
        # take 2 µs of Python; so that this is as fast as a loop in C.
        self._call = functools.partial(
            self._session._sess.run_with_iobinding,
            self._binding._iobinding,
            onnxruntime.RunOptions(),
        )

    def infer(self) -> None:
        """Run the binding."""
        self._call()

    def run(self, x: Inputs) -> list[np.ndarray]:
        """The outputs as new arrays."""
        outputs: list[np.ndarray] = self._session.run(self._outputs, self._named(x))
        return outputs

    def _named(self, x: Inputs) -> dict[str, np.ndarray]:
        return x if isinstance(x, dict) else {self._inputs[0]: x}

    @staticmethod
    def operators(
        path: str, threads: int, precision: str, x: np.ndarray, seconds: float
    ) -> dict[str, Any]:
        """From the trace of the profiler, and the graph as it is after all optimizations."""
        with tempfile.TemporaryDirectory(prefix="edgekd-operators-") as folder:
            graph = Path(folder, "optimized.onnx")
            session = _open(
                path,
                threads,
                enable_profiling=True,
                profile_file_prefix=str(Path(folder, "trace")),
                optimized_model_filepath=str(graph),
            )
            nodes = onnx_nodes(graph)
            most = max(5, _MOST_EVENTS // max(1, len(nodes)))
            feed = {session.get_inputs()[0].name: x}
            calls = len(repeat(lambda: session.run(None, feed), seconds, least=5, most=most))
            events = json.loads(Path(session.end_profiling()).read_text())
        wall, times = _per_run(events, skip=calls // 5)
        return {
            "runs": len(wall),
            "wall": float(midmean(wall)),
            "operators": [
                executed(
                    node["name"],
                    node["type"],
                    seconds=float(midmean(times[key])) if key in times else None,
                    inputs=node["inputs"],
                    outputs=node["outputs"],
                    origins=[],
                )
                for node in nodes
                for key in [(node["name"], node["type"])]
            ],
        }

    @staticmethod
    def multiply(n: int, threads: int, precision: str) -> Callable[[], object]:
        """MatMul or MatMulInteger with both matrices as inputs."""
        import numpy as np
        import onnxruntime

        if precision not in _PRODUCTS:
            raise ValueError(f"onnxruntime computes in the types of the file, not in {precision}")
        model, left, right = _PRODUCTS[precision]
        session = _open(model, threads)
        binding = session.io_binding()
        for name, type in (("x", left), ("w", right)):
            matrix = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((n, n), type))
            binding.bind_ortvalue_input(name, matrix)
        binding.bind_output("y", "cpu")
        return lambda: session.run_with_iobinding(binding)

    @staticmethod
    def version() -> str:
        """Of the installed package."""
        import onnxruntime

        return str(onnxruntime.__version__)

    @staticmethod
    def build() -> str:
        """Commit and build type."""
        import onnxruntime

        return str(onnxruntime.get_build_info())

    @staticmethod
    def warm() -> None:
        """A session of one Identity node."""
        import numpy as np

        _open(ONE_NODE, 1).run(None, {"x": np.zeros(1, np.float32)})


def _per_run(
    events: list[dict[str, Any]], skip: int
) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """Seconds of every run after the first `skip`, and of every operator (name, type) in them."""
    import numpy as np

    runs = sorted((e["ts"], e["dur"]) for e in events if e["name"] == "model_run")
    starts = [start for start, _ in runs]
    times: dict[tuple[str, str], np.ndarray] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"][: -len("_kernel_time")]
        key = (name, event["args"]["op_name"])
        # Operators of a loop's body run several times in one run.
        mine = times.setdefault(key, np.zeros(len(runs)))
        mine[max(0, bisect.bisect_right(starts, event["ts"]) - 1)] += event["dur"] / 1e6
    wall = np.array([duration / 1e6 for _, duration in runs[skip:]])
    return wall, {key: values[skip:] for key, values in times.items()}


def _open(model: str | bytes, threads: int, **more: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in more.items():
        setattr(options, name, value)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A model that waits for its turn must not burn the core that the other one is measured on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
