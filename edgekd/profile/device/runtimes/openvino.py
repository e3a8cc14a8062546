"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import runtime

if TYPE_CHECKING:
    import numpy as np

_PRECISIONS = {
    "float32": "f32",
    "f32": "f32",
    "float16": "f16",
    "f16": "f16",
    "bfloat16": "bf16",
    "bf16": "bf16",
}


@runtime("openvino", formats=("openvino",))
class OpenVino:
    """CPU plug-in, latency mode. Unless told otherwise it runs f32 files in bf16 or f16 where it can."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        self._compiled = _compile(path, threads, precision)
        self.precision = _precision(self._compiled)
        if self.precision != precision:
            raise ValueError(f"openvino executes this file in {self.precision}, not in {precision}")
        self._request = self._compiled.create_infer_request()

    def set_inputs(self, x: np.ndarray) -> None:
        """Hand over a private copy of the inputs, shared with OpenVINO without another one."""
        import openvino

        self._inputs = openvino.Tensor(x.copy(), shared_memory=True)
        self._request.set_input_tensor(self._inputs)

    def infer(self) -> int:
        """Infer what is set; outputs stay OpenVINO's, without a copy.

        The time is the request's own, as in `benchmark_app`: it takes Python 5 µs more to wrap the
        outputs.
        """
        self._request.infer(share_outputs=True)
        return int(self._request.latency * 1e6)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """The outputs as new arrays."""
        outputs = self._compiled.create_infer_request().infer({0: x})
        return [outputs[port] for port in self._compiled.outputs]

    @staticmethod
    def version() -> str:
        """Of the installed package."""
        import openvino

        return str(openvino.__version__).partition("-")[0]

    @staticmethod
    def warm() -> None:
        """The CPU plug-in with one ReLU."""
        import numpy as np
        import openvino
        from openvino import opset13

        x = opset13.parameter([1, 2], np.float32)
        model = openvino.Model([opset13.relu(x)], [x])
        _compile(model, 1, "f32").create_infer_request().infer({0: np.zeros((1, 2), np.float32)})


def _compile(model: Any, threads: int, precision: str) -> Any:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def _precision(compiled: Any) -> str:
    """What the plug-in says it will execute, after all that it has found out about this CPU."""
    said = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = said.get_type_name() if hasattr(said, "get_type_name") else str(said)
    return _PRECISIONS.get(name, name)
