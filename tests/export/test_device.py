"""Device files: raw values in, answers out, in every format, from float32 and from INT8 files."""

import dataclasses
import itertools

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from edgekd.api import resolve
from edgekd.config.schema import Export
from edgekd.data.resolve import load
from edgekd.export.device import device_files
from edgekd.export.exporter import EXPORTERS
from edgekd.export.fold import fold_onnx, fold_openvino
from edgekd.export.metadata import read
from edgekd.results import ExportedFile, InputSpec
from edgekd.verify.device import device_parity
from tests.export.test_formats import network, source
from tests.pipeline.test_line import TINY, line

SPEC = InputSpec(shape=(3, 8, 8), scale=255, mean=(0.5, 0.4, 0.1), std=(0.2, 0.3, 0.9))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A network that is not symmetric in its channels, exported; and raw images with its logits."""
    folder = tmp_path_factory.mktemp("device")
    module = network("dscnn", (3, 8, 8))
    given = source(module, folder, (3, 8, 8))
    card = given.card.model_copy(update={"input": SPEC})
    given = dataclasses.replace(given, card=card)
    files = []
    for format in ("onnx", "openvino"):
        made = EXPORTERS.get(format)(given, folder, Export(producer="onnx"))
        files.append(
            ExportedFile(
                role="student", format=format, path=f"export/{made.path.name}",
                files=tuple(f"export/{p.name}" for p in made.files), size=1, seconds=0,
                opset=made.opset,
            )
        )  # fmt: skip
    raw = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    normalised = torch.from_numpy(((raw / 255 - mean) / std).astype(np.float32))
    with torch.inference_mode():
        return folder, files, raw, normalised.numpy(), module(normalised).double().numpy()


def run(path, x):
    """The only output, and its name, in the file's own runtime."""
    if path.suffix == ".xml":
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        (name,) = compiled.outputs[0].get_names()
        return compiled(x)[0], name
    session = onnxruntime.InferenceSession(path)
    (output,) = session.get_outputs()
    return session.run(None, {"input": x})[0], output.name


def softmax(logits):
    return torch.from_numpy(logits).softmax(1).numpy()


EXPECTED = {
    "logits": ("logits", lambda logits: logits),
    "softmax": ("probabilities", softmax),
    "argmax": ("class", lambda logits: logits.argmax(1)),
}


@pytest.mark.parametrize(
    ("preprocessing", "output"),
    [pair for pair in itertools.product(("none", "fold"), EXPECTED) if pair != ("none", "logits")],
)
def test_device_files_of_every_format_answer_as_pytorch_and_numpy_do(
    finished, preprocessing, output
):
    folder, files, raw, normalised, logits = finished
    config = Export(preprocessing=preprocessing, output=output, ort=True)
    made = device_files(files, config, SPEC, "uint8", folder)
    assert [file.format for file in made] == ["onnx", "ort", "openvino"]
    name, answer = EXPECTED[output]
    for file in made:
        x = raw if preprocessing == "fold" else normalised
        for batch in (1, 7):
            found, called = run(folder / file.path.removeprefix("export/"), x[:batch])
            np.testing.assert_allclose(found, answer(logits[:batch]), atol=1e-4)
        assert called == name
        assert (file.input, file.output) == (
            "raw" if preprocessing == "fold" else "normalised",
            output,
        )
        assert file.input_type == ("uint8" if preprocessing == "fold" else "float32")


def test_raw_values_that_are_no_bytes_are_float32(finished):
    folder, files, raw, _, logits = finished
    for file in device_files(files, Export(preprocessing="fold"), SPEC, "float32", folder):
        assert file.input_type == "float32"
        found, _ = run(folder / file.path.removeprefix("export/"), raw.astype(np.float32))
        np.testing.assert_allclose(found, logits, atol=1e-4)


def test_features_are_normalised_one_by_one(tmp_path):
    spec = InputSpec(shape=(5,), scale=2, mean=(0, 1, 2, 3, 4), std=(1, 2, 3, 4, 5))
    module = network("mlp", (5,))
    given = source(module, tmp_path, (5,))
    files = []
    for format in ("onnx", "openvino"):
        made = EXPORTERS.get(format)(given, tmp_path, Export(producer="onnx"))
        files.append(
            ExportedFile(
                role="student", format=format, path=f"export/{made.path.name}", files=(), size=1,
                seconds=0,
            )
        )  # fmt: skip
    raw = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    normalised = ((raw / 2 - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(normalised)).numpy()
    for file in device_files(files, Export(preprocessing="fold"), spec, "float32", tmp_path):
        found, _ = run(tmp_path / file.path.removeprefix("export/"), raw)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_is_made_of_the_teacher_or_without_being_asked(finished):
    folder, files, *_ = finished
    assert device_files(files, Export(), SPEC, "uint8", folder) == ()
    teachers = [file.model_copy(update={"role": "teacher"}) for file in files]
    assert device_files(teachers, Export(preprocessing="fold"), SPEC, "uint8", folder) == ()


def test_the_ort_file_comes_with_the_operators_that_a_reduced_build_needs(finished):
    folder, files, *_ = finished
    (made,) = device_files(files, Export(ort=True), SPEC, "uint8", folder)
    model, config = (folder / part.removeprefix("export/") for part in made.files)
    assert (model.name, made.made_from) == ("student.ort", "export/student.onnx")
    assert made.size == model.stat().st_size
    text = config.read_text()
    # Fused convolutions are ONNX Runtime's own; layouts of x86 alone would be in com.microsoft.nchwc.
    assert "Gemm" in text
    assert "FusedConv" in text
    assert "nchwc" not in text


def test_device_files_say_what_they_take_and_give_beside_what_they_were_made_from(finished):
    folder, files, *_ = finished
    config = Export(preprocessing="fold", output="argmax", ort=True)
    for file in device_files(files, config, SPEC, "uint8", folder):
        about = read(folder / file.path.removeprefix("export/"))
        assert about["edgekd.device.input"] == "raw uint8"
        assert about["edgekd.device.output"] == "class"
        assert "edgekd.classes" in about


def test_a_branch_reads_the_normalised_input_too(tmp_path):
    """An If whose branches read the model's input by name, as ONNX allows."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    float32 = onnx.TensorProto.FLOAT
    branch = onnx.helper.make_graph(
        [node("Neg", ["input"], ["z"])], "b", [], [value("z", float32, ["batch", 2])]
    )
    graph = onnx.helper.make_graph(
        [
            node("ReduceSum", ["input"], ["sum"], keepdims=0),
            node("Cast", ["sum"], ["positive"], to=onnx.TensorProto.BOOL),
            node("If", ["positive"], ["logits"], then_branch=branch, else_branch=branch),
        ],
        "g", [value("input", float32, ["batch", 2])], [value("logits", float32, ["batch", 2])],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.save(model, tmp_path / "student.onnx")
    spec = InputSpec(shape=(2,), scale=10, mean=(1, 2), std=(4, 5))
    path = tmp_path / "device.onnx"
    fold_onnx(tmp_path / "student.onnx", path, Export(preprocessing="fold"), spec, "uint8")
    found, _ = run(path, np.array([[10, 70]], np.uint8))
    np.testing.assert_allclose(found, [[0, -1]], atol=1e-6)


@pytest.mark.slow
def test_a_run_verifies_its_device_files_of_int8_too(tmp_path):
    run_, _ = line(
        tmp_path / "run",
        until="verify",
        export={"preprocessing": "fold", "output": "softmax", "weights": "f16", "ort": True},
        quantize={"recipe": "default"},
    )
    parities = {parity.path: parity for parity in run_.verify.device}
    assert set(parities) == {
        *(f"export/student-device.{s}" for s in ("onnx", "ort", "xml")),
        "export/student-f16-device.xml",
        *(f"quantized/student-int8-device.{s}" for s in ("onnx", "ort", "xml")),
    }
    originals = {p.path: p for p in run_.verify.files}
    for file in run_.device_files:
        parity = parities[file.path]
        assert parity.passed
        assert parity.input_type == "uint8"
        assert parity.accuracy.value == pytest.approx(
            originals[file.made_from].accuracy.value, abs=0.01
        )
    # A device file with another mean is another function: it must not pass.
    config, base = resolve(TINY)
    dataset = load(config.data, config.data.seed, base)
    wrong = dataset.input.model_copy(update={"mean": (dataset.input.mean[0] + 0.5,)})
    (path,) = [f for f in run_.device_files if f.path == "export/student-device.xml"]
    settings = Export(preprocessing="fold", output="softmax")
    fold_openvino(run_.path / "export/student.xml", run_.path / path.path, settings, wrong, "uint8")
    logits = np.load(run_.path / "verify/logits.npz")["openvino/student"]
    assert not device_parity(path, run_.path, dataset, logits, 1e-4).passed
