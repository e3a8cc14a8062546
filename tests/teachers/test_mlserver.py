"""MLServer from PyPI, with a model of its own code, as the teacher behind a wall."""

import json
import textwrap

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd import api
from edgekd.errors import StageError
from tests.teachers.runs import changed, teacher_stage
from tests.teachers.servers import environment, free_ports, running

# A network with one hidden layer, as MLServer's documentation writes a custom runtime.
RUNTIME = textwrap.dedent(
    """
    import os
    import numpy as np
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceResponse

    class Digits(MLModel):
        async def load(self):
            self.w = np.load(self.settings.parameters.uri)
            self.asked = 0
            return True

        async def predict(self, payload):
            x = self.decode(payload.inputs[0], default_codec=NumpyCodec).reshape(-1, 64)
            self.asked += 1
            if self.asked > int(os.environ.get("DIE_AFTER", 10**9)):
                os._exit(1)
            w = self.w
            logits = np.maximum(x @ w["a"] + w["b"], 0) @ w["c"] + w["d"]
            output = NumpyCodec.encode_output("logits", logits.astype(np.float32))
            return InferenceResponse(model_name=self.name, outputs=[output])
    """
)


@pytest.fixture
def served(taught, tmp_path):
    """A context manager that serves the teacher on a port."""
    program = environment("mlserver", "mlserver==1.7.1") / "mlserver"
    folder = tmp_path / "served"
    folder.mkdir()
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(taught.file).graph.initializer}
    w = {name: value.T for name, value in weights.items()}
    np.savez(folder / "weights.npz", **w)
    (folder / "digits_runtime.py").write_text(RUNTIME)
    http, grpc, metrics = free_ports(3)
    (folder / "settings.json").write_text(
        json.dumps({"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "host": "127.0.0.1",
                    "parallel_workers": 0})
    )  # fmt: skip
    (folder / "model-settings.json").write_text(
        json.dumps(
            {"name": "digits", "implementation": "digits_runtime.Digits",
             "parameters": {"uri": str(folder / "weights.npz"), "version": "v1"},
             "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
             "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]}
        )
    )  # fmt: skip

    def serve(**env):
        return running(
            [program, "start", str(folder)],
            f"http://127.0.0.1:{http}/v2/models/digits/ready",
            tmp_path / "mlserver.log",
            cwd=folder,
            env={"PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": str(folder), "HOME": str(tmp_path),
                 **env},
        )  # fmt: skip

    return f"oip://127.0.0.1:{http}/digits/versions/v1", serve


@pytest.mark.slow
def test_mlserver_teaches_and_may_die_in_between(served, digits, taught, tmp_path):
    model, serve = served
    config = changed(teacher={"model": model, "args": {"retries": 1, "pause": 0.05, "batch": 100}})
    with serve(DIE_AFTER="3"), pytest.raises(StageError, match="cannot be reached"):
        teacher_stage(config, tmp_path / "run")
    with serve():
        run = api.distill(config, out=tmp_path / "run")
    with np.load(run.path / "teacher/answers.npz") as archive:
        known = np.isfinite(archive["logits"]).all(1)
        np.testing.assert_allclose(archive["logits"][known], taught.logits[known], atol=1e-3)
    # All is known: the server is not needed for the rest of the line, nor for another student.
    quick = {**config["teacher"]["args"], "retries": 0}
    again = {**config, "teacher": {"model": model, "args": quick}, "distill": {"epochs": 1}}
    run = api.verify(again, out=tmp_path / "other")
    assert run.verify.reference["teacher"].correct == (
        (taught.logits[digits.test].argmax(1) == digits.labels[digits.test]).sum()
    )
