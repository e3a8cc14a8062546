"""OpenVINO on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..operators import executed, midmean, repeat
from . import runtime

if TYPE_CHECKING:
    import numpy as np

    from . import Inputs

_PRECISIONS = {
    "float32": "f32",
    "f32": "f32",
    "float16": "f16",
    "f16": "f16",
    "bfloat16": "bf16",
    "bf16": "bf16",
}


@runtime("openvino", formats=("openvino",), also=("onnx",))
class OpenVino:
    """CPU plug-in, latency mode. Unless told otherwise it runs f32 files in bf16 or f16 where it can."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        import openvino

        model = openvino.Core().read_model(path)
        started = time.perf_counter()
        self._compiled = _compile(model, threads, precision)
        self.compile_seconds: float | None = time.perf_counter() - started
        self.precision = _precision(self._compiled)
        if self.precision != precision:
            raise ValueError(f"openvino executes this file in {self.precision}, not in {precision}")
        self._request = self._compiled.create_infer_request()

    def set_inputs(self, x: Inputs) -> None:
        """Hand over a private copy of the inputs, shared with OpenVINO without another one."""
        if isinstance(x, dict):
            for name, values in x.items():
                self._request.set_tensor(name, _private(values))
        else:
            self._request.set_input_tensor(_private(x))

    def infer(self) -> int:
        """Infer what is set; outputs stay OpenVINO's, without a copy.

        The time is the request's own, as in `benchmark_app`: it takes Python 5 µs more to wrap the
        outputs.
        """
        self._request.infer(share_outputs=True)
        return int(self._request.latency * 1e6)

    def run(self, x: Inputs) -> list[np.ndarray]:
        """The outputs as new arrays."""
        feed = x if isinstance(x, dict) else {0: x}
        outputs = self._compiled.create_infer_request().infer(feed)
        return [outputs[port] for port in self._compiled.outputs]

    @staticmethod
    def operators(
        path: str, threads: int, precision: str, x: np.ndarray, seconds: float
    ) -> dict[str, Any]:
        """From the plug-in's counters, which are means over all inferences, in whole microseconds."""
        import numpy as np

        compiled = _compile(path, threads, precision, PERF_COUNT=True)
        request = compiled.create_infer_request()
        request.set_input_tensor(_private(x))
        cold = len(
            repeat(lambda: request.infer(share_outputs=True), seconds / 10, least=2, most=500)
        )
        before = _counters(request)
        times = repeat(lambda: request.infer(share_outputs=True), seconds, least=5, most=20_000)
        after = _counters(request)
        calls = cold + len(times)
        return {
            "runs": len(times),
            "wall": float(midmean(np.array(times))),
            "operators": [
                executed(
                    name,
                    info["layerType"],
                    kernel=info["primitiveType"],
                    # What the inferences after the first, slow ones took.
                    seconds=max(
                        0.0, (calls * after[name] - cold * before.get(name, 0)) / len(times)
                    )
                    if name in after
                    else None,
                    inputs=inputs,
                    outputs=[name],
                    origins=[text for text in info["originalLayersNames"].split(",") if text],
                )
                for name, info, inputs in _graph(compiled)
            ],
        }

    @staticmethod
    def multiply(n: int, threads: int, precision: str) -> Callable[[], object]:
        """A MatMul by a constant; for int8 of fake-quantized values, as NNCF writes them."""
        import numpy as np
        import openvino
        from openvino import opset13

        def quantized(value: Any, low: float, levels: int) -> Any:
            ends = [np.float32(end) for end in (low, 1, low, 1)]
            return opset13.fake_quantize(value, *ends, levels)

        x = opset13.parameter([n, n], np.float32)
        matrix = np.random.default_rng(0).random((n, n), np.float32)
        w = opset13.constant(2 * matrix - 1)
        if precision == "int8":
            y = opset13.matmul(quantized(x, 0, 256), quantized(w, -1, 255), False, True)
        else:
            y = opset13.matmul(x, w, False, True)
        hint = "f32" if precision == "int8" else precision
        compiled = _compile(openvino.Model([y], [x]), threads, hint)
        if _precision(compiled) != hint:
            raise ValueError(f"openvino does not execute in {precision} on this CPU")
        request = compiled.create_infer_request()
        request.set_input_tensor(_private(matrix))
        return lambda: request.infer(share_outputs=True)

    @staticmethod
    def version() -> str:
        """Of the installed package."""
        import openvino

        return str(openvino.__version__).partition("-")[0]

    @staticmethod
    def build() -> str:
        """Version with build number, commit and branch."""
        import openvino

        return str(openvino.get_version())

    @staticmethod
    def warm() -> None:
        """The CPU plug-in with one ReLU."""
        import numpy as np
        import openvino
        from openvino import opset13

        x = opset13.parameter([1, 2], np.float32)
        model = openvino.Model([opset13.relu(x)], [x])
        _compile(model, 1, "f32").create_infer_request().infer({0: np.zeros((1, 2), np.float32)})


def _private(x: np.ndarray) -> Any:
    """A tensor that owns its memory."""
    import openvino

    tensor = openvino.Tensor(openvino.Type(x.dtype), openvino.Shape(x.shape))
    tensor.data[:] = x
    return tensor


def _counters(request: Any) -> dict[str, float]:
    """Mean seconds of what was executed, by name."""
    return {
        info.node_name: info.real_time.total_seconds()
        for info in request.profiling_info
        if info.status == info.Status.EXECUTED
    }


def _graph(compiled: Any) -> list[tuple[str, dict[str, str], list[str]]]:
    """Name, what the plug-in says of it, and the inputs' names of everything but constants."""
    nodes = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(getattr(v, "value", v)) for key, v in node.get_rt_info().items()}
        if info.get("layerType", "Const") not in ("Const", "Input", "Output"):
            inputs = [port.get_node().get_friendly_name() for port in node.input_values()]
            nodes.append((node.get_friendly_name(), info, inputs))
    return nodes


def _compile(model: Any, threads: int, precision: str, **more: Any) -> Any:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        **more,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def _precision(compiled: Any) -> str:
    """What the plug-in says it will execute, after all that it has found out about this CPU."""
    said = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = said.get_type_name() if hasattr(said, "get_type_name") else str(said)
    return _PRECISIONS.get(name, name)
