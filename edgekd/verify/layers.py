"""Layer by layer: PyTorch's modules beside the same tensors in a file, to find where they part."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.config.schema import Verify
from edgekd.errors import StageError
from edgekd.results import ExportedFile, Layer, LayerComparison
from edgekd.verify.edges import Hardest, tolerance_for, torch_outputs
from edgekd.verify.parity import relative
from edgekd.verify.sessions import one_line, open_session, runtimes_for

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack"


@dataclass(frozen=True)
class Place:
    """A tensor of an ONNX file that is the output of a PyTorch module, in the file's order.

    `type` is the operator that makes it, `weights` the parameter that it reads, if any.
    """

    module: str
    tensor: str
    type: str
    weights: str | None


def compare_layers(
    file: ExportedFile,
    root: Path,
    module: nn.Module,
    x: np.ndarray,
    onnx: Path,
    settings: Verify,
    failed: Hardest | None = None,
) -> LayerComparison:
    """Every module of `module` whose output is a tensor in the file, fed the samples `x` (n, …).

    `onnx` is the role's float32 ONNX file, which says what tensor is whose: those that are made
    from it keep the names. Where `failed` is given, its inputs and tolerance are taken instead.
    Raises StageError when a file cannot be opened.
    """
    runtime = runtimes_for(file.format)[0]
    tolerance = tolerance_for(settings, file.variant, "f32")
    several = x
    if failed is not None:
        x = x if failed.x is None else failed.x
        tolerance = failed.case.tolerance or tolerance
    expected = module_outputs(module, x)
    known = [place for place in places(onnx) if place.module in expected]
    open_session(runtime, root / file.path)
    try:
        found = _TAPS[file.format](root / file.path, [place.tensor for place in known], x)
    except Exception as error:
        raise StageError(
            f"its layers cannot be read: {one_line(error)}", where=f"{file.path} in {runtime}"
        ) from None
    layers = []
    for place in known:
        a, b = expected[place.module], found.get(place.tensor)
        if b is None or a.shape != b.shape:
            continue
        largest, snr = relative(a, b)
        layers.append(
            Layer(
                module=place.module, type=place.type, weights=place.weights, tensor=place.tensor,
                shape=a.shape[1:], max_error=largest, snr=snr,
            )
        )  # fmt: skip
    note = "" if layers else _NO_LAYERS
    if failed is not None and layers:
        note = unsteady(module, several, tolerance)
    return LayerComparison(
        role=file.role, variant=file.variant, path=file.path, runtime=runtime, samples=len(x),
        tolerance=tolerance, layers=tuple(layers), note=note,
        inputs="" if failed is None else failed.case.inputs,
        error=None if failed is None else failed.case.max_error or failed.case.note,
    )  # fmt: skip


def unsteady(module: nn.Module, x: np.ndarray, tolerance: float) -> str:
    """Whether PyTorch itself gives other logits when asked again, or one by one: no file can follow."""
    asked = torch_outputs(module, x)
    for how, again in (
        ("when asked again (something in it is random in eval mode)", torch_outputs(module, x)),
        (
            "one by one than in a batch (it mixes the samples of a batch)",
            np.concatenate([torch_outputs(module, x[i : i + 1]) for i in range(len(x))]),
        ),
    ):
        if again.shape != asked.shape:
            continue
        error, _ = relative(asked, again)
        if error is None or error > tolerance:
            return f"PyTorch itself gives other logits {how}; no file can follow that"
    return ""


_NO_LAYERS = (
    "none of its tensors bears a name of the ONNX file's: files made straight from PyTorch do not; "
    "set export.producer to onnx"
)


def module_outputs(module: nn.Module, x: np.ndarray) -> dict[str, np.ndarray]:
    """What every submodule gives, by path; those that run several times or give no tensor are left out."""
    import torch

    seen: dict[str, Tensor | None] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            single = isinstance(output, torch.Tensor) and output.is_floating_point()
            # A copy: what comes next may work in place.
            seen[path] = output.clone() if single and path not in seen else None

        return hook

    hooks = [part.register_forward_hook(keep(path)) for path, part in module.named_modules()]
    try:
        with torch.inference_mode():
            module(torch.from_numpy(x))
    finally:
        for handle in hooks:
            handle.remove()
    return {path: value.numpy() for path, value in seen.items() if value is not None}


def places(path: Path) -> list[Place]:
    """The tensors that are the only thing to leave a module, the innermost module of each.

    The exporter notes every operator's modules. Raises StageError for what is no ONNX file.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise StageError(f"is not an ONNX model: {one_line(error)}", where=str(path)) from None
    inside = [_modules(node) for node in graph.node]
    readers: dict[str, list[int]] = {}
    for position, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(position)
    outputs = {value.name for value in graph.output}
    leaving: dict[str, list[tuple[int, str]]] = {}
    for position, node in enumerate(graph.node):
        for name in node.output:
            for module in inside[position]:
                read = readers.get(name, [])
                if name in outputs or any(module not in inside[reader] for reader in read):
                    leaving.setdefault(module, []).append((position, name))
    weights = {value.name for value in graph.initializer}
    found: dict[str, tuple[int, Place]] = {}
    # Outer modules first: the innermost of those with the same output stays.
    for module, tensors in sorted(leaving.items(), key=lambda item: item[0].count(".")):
        if len(tensors) == 1:
            position, name = tensors[0]
            node = graph.node[position]
            own = [w for w in node.input if w in weights and w.endswith("weight")]
            found[name] = position, Place(module, name, node.op_type, next(iter(own), None))
    return [place for _, place in sorted(found.values(), key=lambda entry: entry[0])]


def _modules(node: onnx.NodeProto) -> frozenset[str]:
    """Paths of the modules that an operator is part of; "" is the whole model."""
    written = {entry.key: entry.value for entry in node.metadata_props}
    try:
        scopes = ast.literal_eval(written[_SCOPES])[:-1]
    except (KeyError, ValueError, SyntaxError, TypeError):
        return frozenset()
    return frozenset(str(scope) for scope in scopes if not str(scope).startswith(_NO_MODULE))


def _onnx_taps(path: Path, names: Sequence[str], x: np.ndarray) -> dict[str, np.ndarray]:
    import onnx
    import onnxruntime

    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    present = {value.name for value in model.graph.output}
    wanted = [name for name in names if name in made]
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in wanted if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(wanted, {session.get_inputs()[0].name: x})
    return dict(zip(wanted, values, strict=True))


def _openvino_taps(path: Path, names: Sequence[str], x: np.ndarray) -> dict[str, np.ndarray]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    made = {
        name
        for operator in model.get_ops()
        if operator.get_type_name() != "Result"
        for port in operator.outputs()
        for name in port.get_names()
    }
    present = {name for port in model.outputs for name in port.get_names()}
    wanted = [name for name in names if name in made]
    model.add_outputs([name for name in wanted if name not in present])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled({0: x})
    return {name: np.array(result[compiled.output(name)]) for name in wanted}


_TAPS: dict[str, Callable[[Path, Sequence[str], np.ndarray], dict[str, np.ndarray]]] = {
    "onnx": _onnx_taps,
    "openvino": _openvino_taps,
}
