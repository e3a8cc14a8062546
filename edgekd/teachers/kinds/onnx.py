"""Gray-box: `onnx:FILE`, an ONNX model from anywhere, executed by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgekd.artifacts import atomic_path
from edgekd.errors import StageError, UsageError
from edgekd.registry import suggestion
from edgekd.teachers.labels import reordering
from edgekd.teachers.teacher import Options, Teacher, location, teacher, write_card
from edgekd.teachers.teacher import options as parsed

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.distill.method import Knowledge
    from edgekd.pipeline.stages import Context
    from edgekd.profile.device.runtimes import Session
    from edgekd.results import InputSpec

_MAX_SINGLE_FILE = 2**31 - 2**20
# Keys of `metadata_props` under which exporters keep the names of the classes.
_NAMES = ("edgekd.classes", "classes", "labels", "names", "class_names")
# Smallest probability: what is below it is a rounded zero, whose logarithm would be −∞.
LEAST = 1e-7


class OnnxOptions(Options):
    """`teacher.args` of an ONNX file; all of it is read from the file where it is not given."""

    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    output: str | None = Field(None, description="Which output; null: the only one, or `logits`.")
    gives: Literal["logits", "probabilities"] | None = Field(
        None, description="null: probabilities where the output is a softmax."
    )
    classes: list[str] | None = Field(
        None, description="The names of its outputs in order; null: the file's, else the data's."
    )
    threads: int | None = Field(None, ge=1, description="null: as many as PyTorch uses.")


@teacher("onnx", transparency="gray-box", provides={"logits", "probabilities", "labels"})
class OnnxTeacher(Teacher):
    """`model.onnx` is the given file, with its output made logits in the data's order of classes."""

    exports = True
    Options: ClassVar[type[Options] | None] = OnnxOptions

    def __init__(self, session: Session, classes: int, where: str) -> None:
        self._session, self._classes, self._where = session, classes, where

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """The content of the file and of what it keeps its weights in."""
        from edgekd.data.source import content_hash
        from edgekd.export.parts import model_parts

        path = location(config, base)
        return {
            "options": parsed(cls, config.teacher.args).model_dump(mode="json"),
            "content": [content_hash(part) for part in _parts(path, model_parts)],
        }

    @classmethod
    def make(cls, context: Context) -> None:
        """`model.onnx` (and `model.onnx.data` for 2 GB and more), after trying it on real samples."""
        import numpy as np

        options: OnnxOptions = parsed(cls, context.config.teacher.args)
        path, dataset = location(context.config, context.base), context.dataset
        model = _read(path)
        where = f"teacher.model {path.name}"
        _check_input(model, dataset.input, where)
        output = _output(model, options.output, len(dataset.classes), where)
        names = options.classes or _metadata_names(model)
        order = reordering(names, dataset.classes, where=where)
        is_softmax = _is_softmax(model, output)
        gives = options.gives or ("probabilities" if is_softmax else "logits")
        _adapt(model, output, gives, order)
        _free_batch(model)
        _save(model, context.folder / "model.onnx")
        write_card(context, context.folder, parameters=_parameters(model))
        tried = cls.load(context.folder, context.base, dataset)
        some = dataset.test[:8]
        try:
            answers = tried.answers(dataset, some)
            singly = np.concatenate(
                [tried.answers(dataset, some[i : i + 1]) for i in range(len(some))]
            )
        except StageError:
            raise
        except Exception as error:
            raise UsageError(
                f"{options.runtime} cannot run it on this data: {_line(error)}",
                where=where,
                fix="it should take float32 inputs (n, …) of the data's shape with any n",
            ) from None
        if not np.allclose(answers, singly, rtol=1e-2, atol=1e-2 * np.abs(answers).max()):
            raise UsageError(
                "answers otherwise to a sample alone than in a batch",
                where=where,
                fix="export it again in evaluation mode, with a free batch size",
            )
        if gives == "logits" and options.gives is None and _are_probabilities(answers):
            raise UsageError(
                "its outputs are between 0 and 1 and sum to 1: are they probabilities?",
                where=where,
                fix="say which with teacher.args: {gives: probabilities} or {gives: logits}",
            )
        if gives == "probabilities":
            _check_probabilities(np.exp(answers), output.name, where)

    @classmethod
    def load(cls, folder: Path, base: Path, dataset: Dataset) -> OnnxTeacher:
        """A session in the configured runtime."""
        import torch

        from edgekd.profile.device.runtimes import load
        from edgekd.results import ModelCard

        card = ModelCard.read(folder / "model.json")
        options: OnnxOptions = parsed(cls, card.args)
        threads = options.threads or torch.get_num_threads()
        try:
            session = load(options.runtime, folder / "model.onnx", threads=threads, precision="f32")
        except Exception as error:
            raise UsageError(
                f"{options.runtime} cannot open it: {_line(error)}",
                where=f"teacher.model {card.model}",
            ) from None
        return cls(session, len(card.classes), card.model)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Whatever the file gives, finite or not."""
        import numpy as np

        return np.asarray(self._session.run(x)[0], dtype=np.float32)

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """Its logits, or log p."""
        import numpy as np
        import torch

        from edgekd.distill.method import Knowledge

        logits = np.asarray(self._session.run(inputs.cpu().numpy())[0], dtype=np.float32)
        check_answers(logits, (len(inputs), self._classes), where=self._where)
        return Knowledge(torch.from_numpy(logits).to(inputs.device))


def check_answers(logits: np.ndarray, shape: tuple[int, int], *, where: str) -> None:
    """Raises StageError unless these are finite numbers (n, classes)."""
    import numpy as np

    if logits.shape != shape:
        raise StageError(
            f"the teacher answers with shape {logits.shape}; should be {shape}, a row per sample and a "
            "column per class",
            where=where,
        )
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise StageError(
            f"the teacher's answers to {int(bad.sum())} of {len(bad)} samples are not finite numbers",
            where=where,
            fix="check its weights and how its inputs are normalised (data.mean, data.std)",
        )


def log_probabilities(p: np.ndarray) -> np.ndarray:
    """Log p as float32, with p no smaller than 1e-7."""
    import numpy as np

    logits: np.ndarray = np.log(np.maximum(p.astype(np.float64), LEAST)).astype(np.float32)
    return logits


def _parts(path: Path, model_parts: Any) -> list[Path]:
    if path.suffix != ".onnx":
        raise UsageError(f"is not called .onnx: {path}", where="teacher.model")
    try:
        return list(model_parts(path))
    except UsageError as error:
        raise UsageError(error.what, where=f"teacher.model {error.where}") from None


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:
        raise UsageError(
            f"cannot be read: {_line(error)}", where=f"teacher.model {path.name}"
        ) from None


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Of each dimension; None where it is free."""
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in value.type.tensor_type.shape.dim
    ]


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _check_input(model: onnx.ModelProto, spec: InputSpec, where: str) -> None:
    import onnx

    inputs = _inputs(model)
    if len(inputs) != 1:
        raise UsageError(f"takes {len(inputs)} inputs; should take one", where=where)
    element = inputs[0].type.tensor_type.elem_type
    if element != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(element).lower()
        raise UsageError(
            f"takes inputs of type {name}; should take float32", where=where,
            fix="export it with float32 inputs",
        )  # fmt: skip
    sizes = _sizes(inputs[0])[1:]
    fits = len(sizes) == len(spec.shape) and all(
        size in (None, wanted) for size, wanted in zip(sizes, spec.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("?" if size is None else str(size) for size in sizes)
        raise UsageError(
            f"takes inputs of shape (n, {shape}); the data's are (n, {', '.join(map(str, spec.shape))})",
            where=where,
        )
    said = _metadata(model).get("edgekd.input")
    if said:
        _check_normalisation(said, spec, where)


def _check_normalisation(said: str, spec: InputSpec, where: str) -> None:
    """What another run of edgekd wrote into the file. Raises UsageError when it is fed otherwise."""
    from edgekd.results import InputSpec

    theirs = InputSpec.model_validate_json(said)

    def same(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return len(a) == len(b) and all(
            math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-6) for x, y in zip(a, b, strict=True)
        )

    if not (same(theirs.mean, spec.mean) and same(theirs.std, spec.std)):
        raise UsageError(
            "was trained on inputs that were normalised otherwise than this data",
            where=where,
            fix=f"set data: {{mean: {list(theirs.mean)}, std: {list(theirs.std)}}}",
        )


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _metadata_names(model: onnx.ModelProto) -> list[str] | None:
    """The names of the classes, as a JSON or Python list, or as a mapping from numbers."""
    metadata = _metadata(model)
    for key in _NAMES:
        names = _as_names(metadata.get(key, ""))
        if names:
            return names
    return None


def _as_names(text: str) -> list[str] | None:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict) and all(str(key).isdigit() for key in value):
            value = [value[key] for key in sorted(value, key=int)]
        if isinstance(value, list) and value:
            return [str(name) for name in value]
    return None


def _parameters(model: onnx.ModelProto) -> int:
    """The floating-point numbers of the file: shapes, axes and other integers are not learned."""
    import onnx

    t = onnx.TensorProto
    learned = (t.FLOAT, t.FLOAT16, t.BFLOAT16, t.DOUBLE, t.INT8, t.UINT8)
    weights = (w for w in model.graph.initializer if w.data_type in learned and w.dims)
    return sum(math.prod(w.dims) for w in weights)


def _output(
    model: onnx.ModelProto, wanted: str | None, classes: int, where: str
) -> onnx.ValueInfoProto:
    outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in model.graph.output}
    if wanted is not None:
        if wanted not in outputs:
            raise UsageError(
                f"has no output {wanted!r}{suggestion(wanted, outputs)}",
                where="teacher.args.output",
            )
        chosen = outputs[wanted]
    elif len(outputs) == 1:
        (chosen,) = outputs.values()
    elif "logits" in outputs:
        chosen = outputs["logits"]
    else:
        raise UsageError(
            f"has the outputs {', '.join(outputs)}",
            where=where,
            fix="say which one with teacher.args: {output: NAME}",
        )
    sizes = _sizes(chosen)
    if sizes and (len(sizes) != 2 or sizes[1] not in (None, classes)):
        shape = ", ".join("?" if size is None else str(size) for size in sizes[1:])
        raise UsageError(
            f"gives {chosen.name} of shape (n, {shape}), but the data has {classes} classes",
            where=where,
        )
    return chosen


def _is_softmax(model: onnx.ModelProto, output: onnx.ValueInfoProto) -> bool:
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output.name)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def _adapt(
    model: onnx.ModelProto, output: onnx.ValueInfoProto, gives: str, order: list[int] | None
) -> None:
    """Only the chosen output, as log p and in the data's order of classes where it is not yet."""
    import numpy as np
    from onnx import helper, numpy_helper

    def tail(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"edgekd_{kind.lower()}"
        model.graph.node.append(
            helper.make_node(kind, list(inputs), [name], name=name, **attributes)
        )
        return name

    last = output.name
    if gives == "probabilities":
        least = numpy_helper.from_array(np.array(LEAST, np.float32), "edgekd_least")
        model.graph.initializer.append(least)
        last = tail("Log", tail("Max", last, "edgekd_least"))
    if order is not None:
        places = numpy_helper.from_array(np.array(order, np.int64), "edgekd_order")
        model.graph.initializer.append(places)
        last = tail("Gather", last, "edgekd_order", axis=1)
    chosen = type(output)()
    chosen.CopyFrom(output)
    chosen.name = last
    del model.graph.output[:]
    model.graph.output.append(chosen)


def _free_batch(model: onnx.ModelProto) -> None:
    """A fixed batch size becomes a free one; whether the graph bears it is tried afterwards."""
    for value in (*_inputs(model), *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and not dimensions[0].dim_param:
            dimensions[0].dim_param = "batch"
            del model.graph.value_info[:]


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    if model.ByteSize() < _MAX_SINGLE_FILE:
        with atomic_path(path) as temporary:
            onnx.save(model, temporary)
    else:
        onnx.save(
            model, path, save_as_external_data=True, location=f"{path.name}.data",
        )  # fmt: skip


def _are_probabilities(answers: np.ndarray) -> bool:
    import numpy as np

    in_range = bool((answers >= 0).all() and (answers <= 1).all())
    return in_range and bool(np.allclose(answers.sum(axis=1), 1, atol=1e-3))


def _check_probabilities(p: np.ndarray, name: str, where: str) -> None:
    """Raises UsageError for rows that do not sum to 1: what is negative was made 1e-7 by then."""
    import numpy as np

    sums = p.sum(axis=1)
    off = np.abs(sums - 1) > 0.02
    if off.any():
        raise UsageError(
            f"{int(off.sum())} of {len(p)} answers of its output {name!r} are no probabilities: they "
            f"should be 0 or more with the sum 1, and what is positive in one sums to {sums[off][0]:.4g}",
            where=where,
            fix="set teacher.args: {gives: logits} if they are logits, or {output: NAME} for the output "
            "that has probabilities",
        )


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
