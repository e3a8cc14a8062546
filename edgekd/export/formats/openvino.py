"""OpenVINO IR, from the ONNX file or straight from PyTorch: whichever is the same function and faster."""

from __future__ import annotations

import re
import statistics
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.artifacts import atomic_files, write_text
from edgekd.config.schema import Export
from edgekd.errors import StageError
from edgekd.export import metadata
from edgekd.export.agreement import CLOSE, difference, reference
from edgekd.export.dimensions import dynamic_axes, other_sizes
from edgekd.export.exporter import Exported, Source, exporter
from edgekd.export.log import quiet

_WORDS = {"onnx": "ONNX", "pytorch": "PyTorch"}
# Less than this is no reason to give up the ONNX file's names of operators, by which a profile
# knows what module they came from.
_FASTER = 0.05
# 8 of 9 fair coins fall on one side in 2 of 100 throws.
_BLOCKS, _ENOUGH = 9, 8
# Seconds that a block takes, about, and the most inferences in it.
_BLOCK = 0.02
_MOST_CALLS = 200
_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
}


@dataclass(frozen=True)
class _Candidate:
    """A converted model, in memory and compiled, and how far its outputs are from PyTorch's."""

    name: str
    model: Any
    compiled: Any
    gap: float


@exporter("openvino")
def export_openvino(source: Source, folder: Path, config: Export) -> Exported:
    """Write `<role>.xml` and `<role>.bin`; float32 weights.

    Raises StageError when OpenVINO refuses the model; the whole log is in `<role>.xml.log`.
    """
    path = folder / f"{source.card.role}.xml"
    with quiet() as captured:
        candidates, failed = _candidates(source, config)
        if not candidates:
            name, error = next(iter(failed.items()))
            log = path.with_name(f"{path.name}.log")
            parts = [captured.getvalue()]
            parts += ["".join(traceback.format_exception(error)) for error in failed.values()]
            write_text(log, "\n".join(parts))
            raise StageError(
                f"OpenVINO cannot convert the {source.card.role} from {_WORDS[name]}: "
                f"{_reason(error)}",
                where=source.card.model,
                fix=f"the whole log is {log}",
            ) from None
        chosen, reason = _choose(candidates, failed, source)
        model = chosen.model
        _name_generated(model)
        metadata.set_openvino(model, metadata.describe(source))
        files = save(model, path)
    return Exported(path, files, producer=f"openvino from {_WORDS[chosen.name]}", notes=(reason,))


def save(model: Any, path: Path, *, half: bool = False) -> tuple[Path, ...]:
    """Write the IR, both files or none; with `half` its weights as float16, which runtimes convert."""
    import openvino

    names = (path.name, path.with_suffix(".bin").name)
    with atomic_files(path.parent, names) as temporary:
        openvino.save_model(model, temporary / path.name, compress_to_fp16=half)
    return tuple(path.with_name(name) for name in names)


def compress(ir: Path, path: Path) -> Exported:
    """Write the IR again with weights in float16."""
    import openvino

    files = save(openvino.Core().read_model(ir), path, half=True)
    return Exported(path, files, producer=f"openvino from {ir.name}, weights as float16")


def _candidates(source: Source, config: Export) -> tuple[list[_Candidate], dict[str, Exception]]:
    """What could be converted, the configured producer first, and why the others could not."""
    wanted = ["pytorch", "onnx"] if config.producer == "pytorch" else ["onnx", "pytorch"]
    cases = _cases(source, config)
    found: list[_Candidate] = []
    failed: dict[str, Exception] = {}
    for name in wanted:
        if found and found[0].gap <= CLOSE and config.producer != "auto":
            break
        try:
            model = _PRODUCERS[name](source, config)
            compiled = _compile(model)
            gap = max(
                difference(expected, _outputs(compiled, inputs)) for inputs, expected in cases
            )
        except Exception as error:
            failed[name] = error
        else:
            found.append(_Candidate(name, model, compiled, gap))
    return found, failed


def _choose(
    candidates: list[_Candidate], failed: dict[str, Exception], source: Source
) -> tuple[_Candidate, str]:
    """The best candidate, and why."""
    best = candidates[0]
    if failed:
        name, error = next(iter(failed.items()))
        return best, f"from {_WORDS[best.name]}: from {_WORDS[name]} it fails: {_reason(error)}"
    if len(candidates) == 1:
        return best, f"from {_WORDS[best.name]}, as configured"
    other = candidates[1]
    if max(best.gap, other.gap) > CLOSE:
        first, second = sorted(candidates, key=lambda candidate: candidate.gap)
        return first, (
            f"from {_WORDS[first.name]}: its outputs differ from PyTorch's by {first.gap:.1e} of the "
            f"largest, from {_WORDS[second.name]} by {second.gap:.1e}"
        )
    if _executed(best.compiled) == _executed(other.compiled):
        return best, (
            f"from {_WORDS[best.name]}: from {_WORDS[other.name]} OpenVINO executes the same "
            f"{len(_executed(best.compiled))} operators"
        )
    return _faster(best, other, source)


def _faster(onnx: _Candidate, direct: _Candidate, source: Source) -> tuple[_Candidate, str]:
    """Both in turns on one sample and one thread: nearly all blocks must agree.

    A median alone would choose now this and now that file of a network that is near the limit.
    """
    ones = {name: np.ascontiguousarray(x[:1].numpy()) for name, x in source.inputs.items()}
    requests = [c.compiled.create_infer_request() for c in (onnx, direct)]
    first = max(_seconds(request, ones, 3) for request in requests)
    calls = max(1, min(_MOST_CALLS, int(_BLOCK / max(first, 1e-9))))
    blocks = [[_seconds(request, ones, calls) for request in requests] for _ in range(_BLOCKS)]
    ratios = [new / old for old, new in blocks]
    faster = sum(ratio < 1 - _FASTER for ratio in ratios)
    best = direct if faster >= _ENOUGH else onnx
    return best, (
        f"from {_WORDS[best.name]}: straight from PyTorch a sample takes {statistics.median(ratios):.2f} "
        f"times as long as from ONNX (median of {_BLOCKS} blocks in turns, 1 thread), below "
        f"{1 - _FASTER:.2f} in {faster} of them ({_ENOUGH} are asked)"
    )


def _seconds(request: Any, inputs: dict[str, np.ndarray], calls: int) -> float:
    """The median inference."""
    times: list[float] = []
    for _ in range(calls):
        request.infer(inputs, share_inputs=True, share_outputs=True)
        times.append(request.latency / 1e3)
    return statistics.median(times)


Case = tuple[dict[str, np.ndarray], list[np.ndarray]]


def _cases(source: Source, config: Export) -> list[Case]:
    """Inputs, and what PyTorch gives for them: the example, one sample, other sizes if they are free."""
    ones = {name: x[:1] for name, x in source.inputs.items()}
    given = [source.inputs, ones]
    if any(set(free) != {0} for free in dynamic_axes(source.inputs, config).values()):
        given.append(other_sizes(source.inputs, config))
    return [
        ({name: x.numpy() for name, x in inputs.items()}, reference(source.module, inputs))
        for inputs in given
    ]


def _outputs(compiled: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    found = compiled(inputs)
    return [found[port] for port in compiled.outputs]


def _executed(compiled: Any) -> list[str]:
    """The types of what the plug-in executes, in order."""
    return [
        str(getattr(info, "value", info))
        for node in compiled.get_runtime_model().get_ordered_ops()
        for info in [node.get_rt_info()["layerType"]]
    ]


def _from_onnx(source: Source, config: Export) -> Any:
    import openvino

    if not source.onnx.is_file():
        raise ValueError("there is no ONNX file of it")
    return openvino.convert_model(source.onnx)


def _from_pytorch(source: Source, config: Export) -> Any:
    """With the ONNX file's names of inputs and outputs, and the sizes that are free in it.

    OpenVINO traces the module with TorchScript. From the program of torch.export, which it takes
    too, the graph is the same but for reshapes, and the conversion two to four times as slow.
    """
    import openvino
    from torch.jit._trace import TracerWarning

    axes = dynamic_axes(source.inputs, config)
    free = [
        [-1 if axis in axes[name] else size for axis, size in enumerate(x.shape)]
        for name, x in source.inputs.items()
    ]
    example = tuple(source.inputs.values())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TracerWarning)
        model = openvino.convert_model(
            source.module,
            example_input=example if len(example) > 1 else example[0],
            input=[openvino.PartialShape(sizes) for sizes in free],
        )
    doubts = [w for w in said if issubclass(w.category, TracerWarning)]
    if doubts:
        # TorchScript only warns where it makes a constant of what depends on the inputs.
        raise ValueError(
            f"{doubts[0].filename}:{doubts[0].lineno} may do something else for other inputs"
        )
    for port, name in zip(model.inputs, source.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, source.outputs, strict=True):
        port.get_tensor().set_names({name})
    return model


_PRODUCERS: dict[str, Callable[[Source, Export], Any]] = {
    "onnx": _from_onnx,
    "pytorch": _from_pytorch,
}


def _compile(model: Any) -> Any:
    import openvino

    return openvino.Core().compile_model(model, "CPU", _SETTINGS)


def _name_generated(model: Any) -> None:
    """Number the operators that OpenVINO made up names for by their place in the graph.

    Its own numbers count everything that the process ever made: the same model would be another
    file each time.
    """
    for position, operator in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*_\d+", operator.friendly_name):
            operator.friendly_name = f"{operator.get_type_name()}_{position}"


def _reason(error: Exception) -> str:
    """OpenVINO says what is wrong last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
