"""ONNX Runtime on the CPU."""

from __future__ import annotations

import base64
import functools
from typing import TYPE_CHECKING, Any

from . import runtime

if TYPE_CHECKING:
    import numpy as np

# An ONNX model (opset 13) of one Identity node on a float of shape (1,).
_ONE_NODE = base64.b64decode(
    "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0="
)
_PRECISIONS = {"tensor(float)": "f32", "tensor(float16)": "f16", "tensor(bfloat16)": "bf16"}


@runtime("onnxruntime", formats=("onnx",))
class OnnxRuntime:
    """CPU execution provider. It computes in the types of the file, so that these are its precision."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        import onnxruntime

        self._session = _open(path, threads)
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

    def set_inputs(self, x: np.ndarray) -> None:
        """Copy the inputs to ONNX Runtime and keep the outputs' memory for all calls."""
        import onnxruntime

        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._inputs[0], self._value.ortvalue_from_numpy(x))
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        for name, value in zip(self._outputs, self._binding.get_outputs(), strict=True):
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

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """The outputs as new arrays."""
        outputs: list[np.ndarray] = self._session.run(self._outputs, {self._inputs[0]: x})
        return outputs

    @staticmethod
    def version() -> str:
        """Of the installed package."""
        import onnxruntime

        return str(onnxruntime.__version__)

    @staticmethod
    def warm() -> None:
        """A session of one Identity node."""
        import numpy as np

        _open(_ONE_NODE, 1).run(None, {"x": np.zeros(1, np.float32)})


def _open(model: str | bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A model that waits for its turn must not burn the core that the other one is measured on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
