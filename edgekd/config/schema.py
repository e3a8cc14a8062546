"""The configuration: one class per section; every field says what it means, its unit and its range."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from edgekd.config import units
from edgekd.config.units import Dimension
from edgekd.distill.method import MethodList, needing_every_logit
from edgekd.distill.scheme import SchemeChoice
from edgekd.errors import UsageError
from edgekd.registry import suggestion
from edgekd.results import SCORES, Variant
from edgekd.teachers.teacher import TORCH, check_methods, kind_of, options

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Format = Literal["onnx", "openvino"]
Precision = Literal["f32", "f16", "bf16"]


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Augment(Section):
    """How a view is made from a sample; a pure function of (seed, sample index, view number)."""

    crop: int = Field(0, ge=0, le=64, description="Shift by up to this many pixels (pad and crop).")
    flip: bool = Field(False, description="Mirror half of the views left to right.")
    colour: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Brightness, contrast and saturation times a factor in 1 ± this.",
    )
    mixup: float = Field(
        0.0, ge=0, le=100, description="α of mixup: blended with another sample, λ ~ Beta(α, α)."
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=100,
        description="α of cutmix: a box of another sample pasted in. With mixup: either, half each.",
    )
    views: int = Field(
        8, ge=1, le=1000, description="Different views per sample; epochs cycle through them."
    )


class Text(Section):
    """How texts become token ids, for the source `text`."""

    column: str = Field("text", min_length=1, description="The column with the texts.")
    label: str = Field("label", min_length=1, description="The column with their classes.")
    tokenizer: str | None = Field(
        None,
        description="A tokenizer.json, or a folder with one; null: that of a teacher `hf:FOLDER`.",
    )
    max_length: int = Field(
        128,
        ge=4,
        le=8192,
        description="Tokens that a text has at most, special ones included; what is longer is cut.",
    )


class Audio(Section):
    """How sound becomes log-mel spectrograms, for the source `audio`; times in seconds."""

    seconds: float = Field(
        1.0,
        gt=0,
        le=600,
        description="Of a clip: longer ones are cut, silence fills shorter ones.",
    )
    window: Positive = Field(0.04, description="That a spectrum is taken of (Hann).")
    hop: Positive = Field(0.02, description="From one window to the next.")
    mels: int = Field(40, ge=4, le=256, description="Filters, and so features of a window.")
    low: NonNegative = Field(20.0, description="Hz, where the first filter begins.")
    high: Positive | None = Field(
        None, description="Hz, where the last one ends; null: half the sampling rate."
    )


class Data(Section):
    """Where samples come from and how they are split."""

    source: str = Field(
        "digits",
        description="digits | idx:FOLDER | npz:FILE | csv:FILE | folder:FOLDER | masks:FOLDER | "
        "audio:FOLDER | text:FILE | ts:FILE. Relative paths start at the configuration file; "
        "$VARIABLES are expanded.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Of the splits; apart from the run's seed, so that runs compare.",
    )
    validation: Share = Field(0.1, description="Share of the training samples kept for selection.")
    test: Share = Field(
        0.3,
        description="Share of all samples kept for testing, where the source has no test split.",
    )
    limit: int | None = Field(
        None,
        ge=20,
        description="Use at most this many samples of the training and of the test split.",
    )
    image_size: tuple[int, int] | None = Field(
        None, description="[height, width] that folder images are resized to."
    )
    mean: list[Number] | None = Field(
        None,
        min_length=1,
        description="Of raw/scale, per channel; null: of the training split. For teachers that were "
        "trained with another normalisation. Scale: 16 digits, 255 uint8 and images, 1 floats.",
    )
    std: list[Positive] | None = Field(None, min_length=1, description="With mean.")
    task: Literal["classification", "regression", "quantile", "segmentation"] | None = Field(
        None, description="What the labels are for; null: what the source says."
    )
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="Of a csv file: the columns to be predicted; null: the last one.",
    )
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.1, 0.5, 0.9], min_length=1, description="With task: quantile, in rising order."
    )
    text: Text = Field(default_factory=Text)
    audio: Audio = Field(default_factory=Audio)
    augment: Augment = Field(default_factory=Augment)

    @model_validator(mode="after")
    def _whole_normalisation(self) -> Data:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std should have as many values as there are channels")
        return self

    @model_validator(mode="after")
    def _keys_that_are_read(self) -> Data:
        """What another source or task would read is not what was meant."""
        kind = self.source.partition(":")[0]
        default = type(self).model_fields
        for key, sources in (
            ("targets", ("csv",)),
            ("image_size", ("folder", "masks")),
            ("audio", ("audio",)),
            ("text", ("text",)),
        ):
            if kind not in sources and getattr(self, key) != default[key].get_default(
                call_default_factory=True
            ):
                raise _at((key,), f"is for {' and '.join(s + ':' for s in sources)}, not {kind}:")
        if self.task != "quantile" and self.quantiles != default["quantiles"].default:
            raise _at(("quantiles",), "goes with data.task: quantile")
        return self

    @field_validator("quantiles")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value:
            raise ValueError(f"should rise, such as [0.1, 0.5, 0.9], not {value}")
        if len({f"{level:g}" for level in value}) < len(value):
            raise ValueError("two of them are the same to six digits")
        return value

    @field_validator("image_size", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: Any) -> Any:
        if value is None or isinstance(value, tuple):
            return value
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"should be [height, width], such as [32, 32], not {value!r}")
        return tuple(value)

    @field_validator("image_size")
    @classmethod
    def _sensible_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= side <= 4096 for side in value):
            raise ValueError("height and width should be between 1 and 4096")
        return value


class Compute(Section):
    """How a training step is computed. `auto` measures the student's step where that pays."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one."
    )
    precision: Literal["auto", "f32", "bf16"] = Field(
        "auto",
        description="bf16: autocast of the model; weights, losses and their gradients stay f32. auto: only "
        "where it is clearly faster here and its gradient points the same way.",
    )
    channels_last: bool | Literal["auto"] = Field("auto", description="Memory layout of images.")
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile of the model's forward and backward; auto: on GPUs only."
    )


class Training(Section):
    """One optimisation: used for the teacher and, with its own defaults, for the student."""

    epochs: int = Field(30, ge=1, le=100_000)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = Field(0.05, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum (sgd only).")
    weight_decay: NonNegative = 5e-4
    max_norm: Positive | None = Field(
        None,
        description="Longest incoming weight vector of a unit (Srivastava 2014, §5.1: 3 to 4); null: any.",
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="cosine to zero; step: ×0.1 at 62.5 %, 75 % and 87.5 % of the epochs."
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps with linear warm-up.")
    select: Literal["best", "last"] = Field(
        "best",
        description="Keep the latest epoch within one standard error of the best accuracy on the "
        "validation split (Breiman 1984, §3.4.3: a lucky early epoch is not picked), or the last.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads; null: as many as PyTorch takes (OMP_NUM_THREADS), or fewer where a "
        "measurement shows that these are faster.",
    )
    compute: Compute = Field(default_factory=Compute)
    checkpoint_every: NonNegative = Field(
        10.0, description="Seconds between checkpoints; 0: after every step."
    )


class Model(Section):
    """A network: built in, or from a factory of yours."""

    model: str = Field(
        description="zoo:NAME (see `edgekd zoo`) | package.module:factory | path/to/file.py:factory"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for it.")
    trained: ClassVar[bool] = True

    @field_validator("model")
    @classmethod
    def _can_be_trained(cls, value: str) -> str:
        if cls.trained and kind_of(value).kind != TORCH:
            raise ValueError(
                f"{value.partition(':')[0]}: is for teachers, which are not trained; should be zoo:NAME, "
                "package.module:factory or path/to/file.py:factory"
            )
        return value

    @field_validator("args")
    @classmethod
    def _plain_data(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("should be numbers, texts, lists and mappings only") from None
        return value


class Weighted(Model):
    """A network whose weights may be given."""

    weights: str | None = Field(
        None, description="A .safetensors file or a weights-only checkpoint; null: train it here."
    )


class Teacher(Weighted):
    """The model that knows. See docs/teachers.md for the kinds and their args."""

    trained: ClassVar[bool] = False
    model: str = Field(
        "zoo:resnet20x2",
        description="zoo:NAME | package.module:factory | path/to/file.py:factory | onnx:FILE | "
        "hf:FOLDER | records:FILE | oip://HOST:PORT/MODEL | oips://HOST:PORT/MODEL.",
    )
    train: Training = Field(default_factory=Training)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Teacher:
        kind = kind_of(self.model)
        if kind.Options is None:
            return self
        if self.weights is not None:
            raise ValueError(f"weights are of PyTorch networks; {self.model} has its own")
        try:
            found = options(kind, self.args)
        except ValueError as error:
            raise _at(("args",), str(error).removeprefix("args: ")) from None
        kind.check(self.model, found)
        return self


class Start(Section):
    """What a zoo:bert student begins with of its teacher, a BERT."""

    embeddings: Literal["copy", "share"] | None = Field(
        "copy",
        description="Those of tokens and places; of a wider teacher their first principal directions. share: "
        "those of tokens stay what they are.",
    )
    layers: Literal["even"] | list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="The teacher's layer for every layer of the student, from 0; even: every second of "
        "twice as many, the last for the last. With the pooler and the classifier.",
    )


AUTO = "auto"


class Student(Model):
    """The model that ships; `student: auto` is short for `student: {model: auto}`."""

    model: str = Field(
        "zoo:dscnn",
        description="zoo:NAME (see `edgekd zoo`) | package.module:factory | path/to/file.py:factory | "
        "auto: the best that `edgekd search` finds for gate.budgets.",
    )
    start: Start | None = Field(
        None, description="Begin with parts of the teacher; null: with random weights."
    )

    @model_validator(mode="before")
    @classmethod
    def _named_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _chosen_whole(self) -> Student:
        if self.auto and (self.args or self.start):
            raise ValueError("args and start are of a network that is named; auto chooses them too")
        return self

    @property
    def auto(self) -> bool:
        """Whether it is still to be found."""
        return self.model == AUTO

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        whole = handler(core)
        return {"anyOf": [{"const": AUTO}, whole]}


class KnowledgeStorage(Section):
    """What the teacher said is kept beside the runs, and shared by all that ask the same."""

    store: bool = Field(True, description="false: the teacher runs in every step.")
    precision: Literal["f16", "f32"] = Field("f16", description="Of what is kept.")
    top_k: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto",
        description="Keep this many of the largest logits, and the log-sum-exp of the rest; null: all. "
        "auto: all, or 100 of more than 1000 classes where all would take more than `limit`.",
    )
    limit: str = Field(
        "8 GB",
        description="Largest size on disk of one distillation's knowledge (views × samples); where its "
        "features would need more, the teacher runs in every step.",
    )
    teacher: Literal["auto", "f32", "bf16"] = Field(
        "auto",
        description="Precision in which the teacher computes. auto: bf16 where the processor has it and the "
        "teacher's probabilities stay the same.",
    )

    @field_validator("limit")
    @classmethod
    def _size(cls, value: str) -> str:
        if units.parse(value, "bytes") < 0:
            raise ValueError(f"should be 0 or more, not {value}")
        return value

    @property
    def limit_bytes(self) -> float:
        """`limit` in bytes."""
        return units.parse(self.limit, "bytes")


class Transfer(Section):
    """What the student learns from, where it is not the whole training split; its teachers know that."""

    share: float = Field(1.0, gt=0, le=1, description="Of the samples, each class by its share.")
    without: list[str] = Field([], description="Classes that no sample is of.")
    only: list[str] | None = Field(
        None, min_length=1, description="Classes that every sample is of; null: of all."
    )
    labels: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the samples whose label is used; the others learn from the teacher alone.",
    )
    unlabelled: str | None = Field(
        None, description="More samples, as in data.source; labels are not needed, nor used."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Transfer:
        if self.without and self.only:
            raise ValueError("give without or only, not both")
        return self

    @property
    def unlabels(self) -> bool:
        """Whether some samples have no label."""
        return self.labels < 1 or self.unlabelled is not None


class Distill(Training):
    """Student training: L = alpha · CE(labels) + Σ weight · method(student, teacher)."""

    scheme: SchemeChoice = Field(
        default_factory=SchemeChoice.default,
        description="Who learns from whom (see `edgekd schemes`). Some have other defaults for alpha and "
        "methods.",
    )
    alpha: NonNegative | None = Field(
        None,
        description="Weight of the labels' loss; null: what goes with the methods: auto's or, "
        "of those given, 0.1; 0.5 with hard; 1 with dkd, dist, cwd and features alone; of several the least; "
        "1 without any.",
    )
    methods: MethodList = Field(
        default_factory=MethodList.default,
        description="Weighted sum of distillation losses; auto: what suits task and number of classes; "
        "[]: train without a teacher.",
    )
    knowledge: KnowledgeStorage = Field(default_factory=KnowledgeStorage)
    transfer: Transfer = Field(default_factory=Transfer)
    doctor: bool = Field(
        True, description="Look for mistakes before training: a few seconds, warnings only."
    )

    @property
    def labels_weight(self) -> float:
        """`alpha`, or what it is where nothing is given: the least that a method has the labels at."""
        if self.alpha is not None:
            return self.alpha
        return min((method.labels_weight for method in self.methods.entries), default=1.0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_scheme(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "scheme" not in value:
            return value
        try:
            scheme = SchemeChoice.parse(value["scheme"]).entry
        except ValueError:
            return value  # the field says what is wrong with it
        return {**scheme.defaults, **value}

    @model_validator(mode="after")
    def _fits_the_scheme(self) -> Distill:
        self.scheme.entry.check(self)
        return self

    @model_validator(mode="after")
    def _labels_where_they_are_needed(self) -> Distill:
        if not self.transfer.unlabels:
            return self
        if not self.methods.entries and not self.scheme.entry.teaches:
            raise ValueError(
                "transfer has samples without labels, and no method teaches them anything"
            )
        for method in self.methods.entries:
            if method.labelled:
                raise ValueError(
                    f"{method.name} needs the label of every sample, and transfer has some without"
                )
        if self.transfer.labels == 0 and self.labels_weight > 0:
            raise ValueError("transfer.labels is 0, so that alpha weights nothing: set alpha to 0")
        return self

    @model_validator(mode="after")
    def _kept_what_is_needed(self) -> Distill:
        if self.methods.auto:
            return self  # known with the data
        needing = needing_every_logit(self.methods.entries)
        if needing is not None and isinstance(self.knowledge.top_k, int):
            raise ValueError(
                f"{needing} needs every logit, and knowledge.top_k keeps {self.knowledge.top_k} of them: "
                "set it to auto or null"
            )
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Distill:
        lost = self.labels_weight == 0 and not self.scheme.entry.teaches
        if lost and not self.methods.entries:
            raise ValueError("alpha is 0 and methods is empty: there is no loss to train with")
        if lost and not any(method.weight for method in self.methods.entries):
            raise ValueError(
                "alpha is 0 and so is the weight of every method: there is no loss to train with"
            )
        for method in self.methods.entries:
            if method.alone >= self.epochs:
                raise ValueError(
                    f"{method.name} is alone for {method.alone} epochs, which leaves none of {self.epochs} "
                    f"for the rest: raise epochs, or set {method.name}.alone"
                )
        if lost and not any(method.persists for method in self.methods.entries):
            raise ValueError(
                "alpha is 0 and every method is `alone`: then there is no loss any more"
            )
        return self


AxisName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FreeAxis = Literal["batch", "height", "width", "length", "sequence"]
Dynamic = list[FreeAxis] | dict[str, list[AxisName | None]]
_BATCH_ONLY: Dynamic = ["batch"]


class Export(Section):
    """Which deployable files are made."""

    formats: list[Format] = Field(["onnx", "openvino"], min_length=1)
    opset: int | None = Field(
        None, ge=18, le=24, description="ONNX opset; null: the exporter's choice."
    )
    dynamic: Dynamic = Field(
        _BATCH_ONLY,
        description="Sizes of the inputs that stay free; the batch always does. A list of names, or by "
        "input the name of every size, null where it is fixed: {input: [batch, null, height, width]}.",
    )
    external_data: bool | Literal["auto"] = Field(
        "auto",
        description="ONNX weights in a file .onnx.data of their own; auto: only those of 2 GiB or more.",
    )
    simplify: bool = Field(
        True,
        description="Simplify the ONNX graph with onnxslim; kept where it has fewer operators and gives "
        "the same outputs for real inputs.",
    )
    producer: Literal["auto", "onnx", "pytorch"] = Field(
        "auto",
        description="What the OpenVINO IR is made from. auto: ONNX, unless the IR straight from PyTorch is "
        "faster in a short measurement; the other one where one fails or gives other outputs.",
    )
    weights: Literal["f32", "f16"] = Field(
        "f32",
        description="f16: the student also as IR with weights stored in float16, at half the size.",
    )
    preprocessing: Literal["none", "fold"] = Field(
        "none",
        description="fold: the student's files also as device files, which take raw values (uint8 for "
        "images) and normalise them themselves.",
    )
    output: Literal["logits", "softmax", "argmax"] = Field(
        "logits",
        description="What device files give; softmax: probabilities, argmax: the number of the class.",
    )
    ort: bool = Field(
        False,
        description="The student's ONNX files also in ORT format (.ort), with the file of operators that "
        "a reduced build of ONNX Runtime needs.",
    )

    @field_validator("formats")
    @classmethod
    def _unique(cls, value: list[Format]) -> list[Format]:
        if len(set(value)) != len(value):
            raise ValueError("the same format is listed twice")
        return value

    @model_validator(mode="after")
    def _made_of_something(self) -> Export:
        if self.ort and "onnx" not in self.formats:
            raise ValueError("ort needs the format onnx, which it is made from")
        if self.weights == "f16" and "openvino" not in self.formats:
            raise ValueError("weights: f16 is for the format openvino, which is not among formats")
        return self


class Qat(Training):
    """Training with fake quantization, with the loss and the teacher's answers of `distill`."""

    epochs: int = Field(3, ge=1, le=100_000)
    # Batch normalisation is folded: the scale of gradients is no longer that of the weights.
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Positive = Field(
        0.0003, description="Peak learning rate; for sgd a hundredth of the student's."
    )
    weight_decay: NonNegative = 0.0
    compute: Compute = Field(
        default_factory=lambda: Compute(precision="f32", compile=False),
        description="As for the student, but float32 and not compiled: rounding to INT8 is exact so.",
    )


class Quantize(Section):
    """INT8 versions of the student's files, calibrated on the training split."""

    recipe: str = Field("default", description="A file of calibration/, shipped or your own.")
    qat: Qat | None = Field(
        None,
        description="Distillation-aware training with fake quantization, after which both INT8 files "
        "are one function; null: quantize what distill has trained.",
    )
    max_drop: str | None = Field(
        None,
        description='Such as "0.3 points": keep the most sensitive layers in float32 until accuracy '
        "on the validation split falls by no more; null: quantize every layer that can be.",
    )
    max_evaluations: int = Field(
        12,
        ge=2,
        le=1000,
        description="Files evaluated on the validation split for max_drop, at most.",
    )
    speed_aware: bool = Field(
        False,
        description="Leave alone the layers whose quantization slows the first measurable target down.",
    )
    speed_seconds: Positive = Field(
        60.0, description="Time to look for such layers, for every format, about."
    )

    @field_validator("qat", mode="before")
    @classmethod
    def _defaults(cls, value: object) -> object:
        return {} if value is True else None if value is False else value

    @field_validator("max_drop", mode="before")
    @classmethod
    def _points(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"has no unit: write '{value:g} points'")
        if isinstance(value, str) and not 0 <= (drop := units.parse(value, "points")) < 1:
            raise ValueError(f"{value!r} is {100 * drop:g} points, not from 0 to 100")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Quantize:
        if self.qat is not None and (self.max_drop is not None or self.speed_aware):
            raise ValueError(
                "qat trains every layer in INT8: it goes without max_drop and speed_aware"
            )
        return self

    @property
    def max_drop_share(self) -> float | None:
        """`max_drop` as a share in [0, 1]."""
        return None if self.max_drop is None else units.parse(self.max_drop, "points")


class Verify(Section):
    """How closely a deployable file must follow the PyTorch model."""

    samples: int = Field(256, ge=1, description="Real inputs compared value by value.")
    tolerance: Positive = Field(
        1e-4, description="Largest |Δlogit| allowed, as a share of the largest |logit|."
    )
    f16_tolerance: Positive = Field(
        1e-2, description="The same for files with weights stored in float16."
    )
    bf16_tolerance: Positive = Field(
        5e-2,
        description="The same for what is computed in bfloat16, as targets of that precision do "
        "(f16_tolerance: in float16).",
    )
    int8_tolerance: Positive = Field(
        0.25,
        description="The same for quantized files (INT8, INT4 weights), whose accuracy is what counts.",
    )
    batches: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        [1, 3, 7, 64],
        min_length=1,
        description="Batch sizes that samples are fed in: all in the largest, a few in the others.",
    )
    examples: int = Field(
        12,
        ge=0,
        le=64,
        description="Test samples that teacher and student disagree on, kept for the report; 0: none.",
    )


class Profile(Section):
    """How latency, throughput and memory are measured."""

    targets: list[str] = Field(["local"], min_length=1, description="See `edgekd targets`.")
    batch_size: int = Field(1, ge=1, description="Batch size of the latency measurement.")
    throughput_batch_size: int = Field(32, ge=1)
    launches: int = Field(
        5,
        ge=1,
        le=100,
        description="Fresh processes of each model, at least: they differ by a few per cent from each "
        "other, and intervals come from their spread. 1: the interval of one process.",
    )
    interval: Share = Field(
        0.05, description="Stop when the 95 % interval of the median is narrower than this share."
    )
    min_seconds: Positive = Field(0.5, description="Measure each model at least this long.")
    max_seconds: Positive = Field(10.0, description="Then give up: the result is inconclusive.")
    multistream: bool = Field(
        False, description="Also MLPerf's MultiStream: queries of 8 samples, at least 662 of them."
    )
    operators: bool = Field(
        True, description="Afterwards also time every operator, and the device's roofline."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        if self.max_seconds < self.min_seconds:
            raise ValueError(
                f"max_seconds ({self.max_seconds:g}) is smaller than min_seconds "
                f"({self.min_seconds:g})"
            )
        return self


Metric = Literal[
    "accuracy", "accuracy_drop", "class_recall", "agreement",
    "r2", "r2_drop", "r1", "r1_drop", "miou", "miou_drop",
    "latency_p50", "latency_p90", "latency_p95", "latency_p99",
    "speedup", "throughput", "memory", "memory_ratio", "size", "compression", "energy", "parity_error",
    "latency_vs_baseline", "accuracy_vs_baseline", "memory_vs_baseline", "size_vs_baseline",
]  # fmt: skip

_USER_METRIC = r"^user\.[A-Za-z][A-Za-z0-9_]{0,63}$"
UserMetric = Annotated[str, Field(pattern=_USER_METRIC)]

DIMENSIONS: dict[str, Dimension] = {
    **dict.fromkeys(SCORES, "share"),
    **{f"{score}_drop": "points" for score in SCORES},
    "class_recall": "share",
    "agreement": "share",
    "latency_p50": "time",
    "latency_p90": "time",
    "latency_p95": "time",
    "latency_p99": "time",
    "speedup": "ratio",
    "throughput": "rate",
    "energy": "energy",
    "memory": "bytes",
    "memory_ratio": "ratio",
    "size": "bytes",
    "compression": "ratio",
    "parity_error": "number",
    # The student against the baseline's: ratios above 1 and points above 0 are worse.
    "latency_vs_baseline": "ratio",
    "accuracy_vs_baseline": "points",
    "memory_vs_baseline": "ratio",
    "size_vs_baseline": "ratio",
}


HIGHER_IS_BETTER = frozenset(
    (*SCORES, "class_recall", "agreement", "throughput", "speedup", "memory_ratio", "compression")
)


def dimension(metric: str) -> Dimension:
    """What a metric is counted in; what the user's function gives are plain numbers."""
    return DIMENSIONS.get(metric, "number")


# What a figure can be, in base units.
RANGES: dict[Dimension, tuple[float, float]] = {
    "time": (0, math.inf),
    "bytes": (0, math.inf),
    "points": (-1, 1),
    "share": (0, 1),
    "ratio": (0, math.inf),
    "rate": (0, math.inf),
    "energy": (0, math.inf),
    "number": (0, math.inf),
}


# R² and R¹ have no least, and so what is lost of them no most.
_ENDLESS = {
    **dict.fromkeys(("r2", "r1"), (-math.inf, 1.0)),
    **dict.fromkeys(("r2_drop", "r1_drop", "accuracy_vs_baseline"), (-math.inf, math.inf)),
}


def possible(metric: str) -> tuple[float, float]:
    """What a figure of this metric can be, in base units."""
    if metric.startswith("user."):
        return -math.inf, math.inf
    return _ENDLESS.get(metric, RANGES[dimension(metric)])


def _hint(limit: float, most: float) -> str:
    return f'; did you mean "{limit:g} %"?' if most == 1 and 1 < limit <= 100 else ""


class Budget(Section):
    """One limit on the student. Exactly one of `max` and `min`, with its unit."""

    metric: Metric | UserMetric = Field(description="user.NAME: what gate.metrics gives.")
    label: str | None = Field(
        None, description="With class_recall: of this class; null: of every class."
    )
    max: str | float | None = Field(None, description='Such as "20 ms", "8 MiB", "1 point".')
    min: str | float | None = Field(None, description='Such as "3 x", "97 %".')
    runtime: str | None = Field(None, description="Only this runtime; null: every one measured.")
    target: str | None = Field(None, description="Only this target; null: every one measured.")
    variant: Variant | None = Field(
        None,
        description="Only these files; null: the quantized ones where there are any, else f32 (parity_error: "
        "always f32).",
    )

    @field_validator("metric", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"should be the name of a metric, not {value!r:.60}")
        if value.startswith("user.") and not re.fullmatch(_USER_METRIC, value):
            raise ValueError(f"{value!r:.80} should be user.NAME, a name of letters, digits and _")
        if value not in DIMENSIONS and not value.startswith("user."):
            raise ValueError(f"no metric {value!r:.60}{suggestion(value, DIMENSIONS)}")
        return value

    @field_validator("max", "min", mode="before")
    @classmethod
    def _quantity(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise ValueError(f"should be a number, with its unit in one text, not {value!r:.60}")
        return value

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        if (self.max is None) == (self.min is None):
            raise ValueError("give exactly one of max and min")
        self._check_direction()
        if self.label is not None and self.metric != "class_recall":
            raise ValueError(f"label belongs to class_recall, not to {self.metric}")
        limit = units.parse(self.bound, dimension(self.metric))
        least, most = possible(self.metric)
        # No time, size or ratio is zero: a limit of zero is a slip.
        nothing = self.max is not None and limit == 0 and most == math.inf and least == 0
        if not least <= limit <= most or (nothing and dimension(self.metric) != "number"):
            raise ValueError(
                f"{self.bound!r} can never be a limit of {self.metric}{_hint(limit, most)}"
            )
        return self

    def _check_direction(self) -> None:
        """A limit on the good side would pass whatever is wrong."""
        if self.metric.startswith("user."):
            return
        wrong, right = ("max", "min") if self.metric in HIGHER_IS_BETTER else ("min", "max")
        if getattr(self, wrong) is not None:
            better = "higher" if right == "min" else "lower"
            raise ValueError(f"{better} is better of {self.metric}: write {right}, not {wrong}")

    @property
    def bound(self) -> str | float:
        """The limit as written."""
        value = self.max if self.max is not None else self.min
        assert value is not None
        return value


_AGAINST_BASELINE: dict[Metric, str] = {
    "latency_vs_baseline": "1.03 x",
    "accuracy_vs_baseline": "0 points",
    "memory_vs_baseline": "1.1 x",
    "size_vs_baseline": "1.05 x",
}


class Gate(Section):
    """What must hold for exit code 0."""

    on_inconclusive: Literal["fail", "warn", "pass"] = Field(
        "fail", description="An undecided budget: exit code 4, or only a warning, or silence."
    )
    budgets: list[Budget] = Field(default_factory=list)
    max_seconds: NonNegative = Field(
        60.0,
        description="Measure what an undecided budget on time is on again, for this long in all; a "
        "comparison with the baseline ends after this long too (never before its first look).",
    )
    baseline: str | None = Field(
        None,
        description="A run folder, or a .onnx or .xml file: it is measured beside the student, in turns. "
        "Where no budget is on that very metric: latency_vs_baseline ≤ 1.03 x, accuracy_vs_baseline ≤ "
        "0 points, memory_vs_baseline ≤ 1.1 x, size_vs_baseline ≤ 1.05 x.",
    )
    rerun_baseline: bool | None = Field(
        None,
        description="Measure the baseline again; false: compare with what its run measured; null: "
        "again where its files are there.",
    )
    allow: list[
        Literal[
            "machine",
            "precision",
            "threads",
            "batch_size",
            "runtime_version",
            "limits",
            "throttled",
        ]
    ] = Field([], description="Differences from the baseline that do not matter to you.")
    metrics: str | None = Field(
        None,
        description="path/to/file.py:function or package.module:function, (logits, labels) -> "
        "{name: number}, for budgets on user.NAME and user.NAME_drop (teacher less student).",
    )

    @property
    def all_budgets(self) -> list[Budget]:
        """`budgets`; with a baseline also the default ones on the metrics that none of them is on."""
        if self.baseline is None:
            return self.budgets
        given = {budget.metric for budget in self.budgets}
        defaults = (Budget(metric=m, max=limit) for m, limit in _AGAINST_BASELINE.items())
        return [*self.budgets, *(budget for budget in defaults if budget.metric not in given)]


class BudgetFile(Section):
    """What `edgekd gate --budget FILE` reads: budgets in place of the run's."""

    budgets: list[Budget] = Field(min_length=1)
    on_inconclusive: Literal["fail", "warn", "pass"] | None = None


Ratio = Annotated[float, Field(gt=0, lt=1)]


class Search(Section):
    """How the student is found where it is `auto`: what is tried, and for how long."""

    candidates: int = Field(
        20, ge=1, le=1000, description="Networks costed before any training, at most."
    )
    trials: int = Field(
        12,
        ge=1,
        le=1000,
        description="Networks times methods that are trained, at most; of those that can meet the budgets.",
    )
    rungs: int = Field(
        3,
        ge=1,
        le=10,
        description="Successive halving: at each rung the best third goes on, for three times the epochs.",
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="At which the last rung ends, of the distill.epochs of a whole training; null: all.",
    )
    keep: float = Field(3.0, gt=1, le=10, description="One of so many goes on to the next rung.")
    methods: list[MethodList] | None = Field(
        None,
        min_length=1,
        description="Each in the place of distill.methods; null: those, and dist where they are kd alone.",
    )
    prune: list[Ratio] = Field(
        [0.25, 0.5, 0.625, 0.75],
        description="Shares of the teacher's channels that pruned candidates are without; []: none.",
    )
    engine: str = Field("local", description="Where trials run: local, or ray://HOST:PORT.")
    jobs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Trials at once; null: as many as the cores have threads for.",
    )
    seconds: Positive = Field(
        1.0, description="Longest measurement of a candidate in one runtime on one target."
    )


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Config(Section):
    """One run of the assembly line."""

    name: str = Field("run", pattern=_NAME, description="Folder under runs/.")
    seed: int = Field(0, ge=0, lt=2**31)
    data: Data = Field(default_factory=Data)
    teacher: Teacher = Field(default_factory=Teacher)
    student: Student = Field(default_factory=Student)
    distill: Distill = Field(default_factory=Distill)
    search: Search = Field(default_factory=Search)
    export: Export = Field(default_factory=Export)
    quantize: Quantize | None = Field(None, description="null: no INT8 files.")
    verify: Verify = Field(default_factory=Verify)
    profile: Profile = Field(default_factory=Profile)
    gate: Gate = Field(default_factory=Gate)
    history: str | None = Field(
        ".edgekd/history.sqlite",
        min_length=1,
        description="SQLite file that every gate adds its figures to, for `edgekd history`; it starts "
        "at the configuration file. null: keep none.",
    )
    license: str | None = Field(
        None,
        max_length=200,
        description="Licence of the student, for its model card: an SPDX expression or a name.",
    )

    @field_validator("name", mode="before")
    @classmethod
    def _names_a_folder(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(_NAME, value):
            raise ValueError(
                "should be at most 100 of a-z, A-Z, 0-9, '.', '_' and '-', the first a letter or digit, "
                f"not {value!r:.120}"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_the_teacher(cls, value: Any) -> Any:
        """Texts are read as the teacher reads them, unless a tokenizer is given."""
        data, teacher = (_section(value, key) for key in ("data", "teacher"))
        text, kind = _section(data, "text"), str(teacher.get("model", "")).partition(":")
        if not str(data.get("source", "")).startswith("text:") or kind[0] != "hf":
            return value
        if text.get("tokenizer") is not None:
            return value
        return {**value, "data": {**data, "text": {**text, "tokenizer": kind[2]}}}

    @model_validator(mode="after")
    def _mixed_labels_are_known(self) -> Config:
        augment = self.data.augment
        if self.distill.transfer.unlabels and (augment.mixup or augment.cutmix):
            raise ValueError(
                "mixup and cutmix mix labels too, and distill.transfer has samples without"
            )
        return self

    @model_validator(mode="after")
    def _student_can_be_found(self) -> Config:
        if not self.student.auto:
            return self
        if "features" not in kind_of(self.teacher.model).provides:
            raise _at(
                ("student", "model"),
                f"auto makes the teacher's network smaller, and {self.teacher.model} only answers; name "
                "a student, such as zoo:dscnn (`edgekd zoo` lists them)",
            )
        if self.distill.scheme.entry.name != "offline":
            raise _at(
                ("distill", "scheme"),
                f"student: auto is searched with scheme offline, not {self.distill.scheme.entry.name}; "
                "search first, then train what it finds with another scheme",
            )
        if not self.gate.budgets:
            raise _at(
                ("gate", "budgets"),
                "student: auto needs a budget, such as {metric: latency_p50, max: 20 ms, target: local}",
            )
        if self.data.source.startswith("text:"):
            raise _at(
                ("student", "model"),
                "auto is not for texts: name zoo:bert, and its dim and depth in args",
            )
        return self

    @model_validator(mode="after")
    def _nothing_to_fold_into_texts(self) -> Config:
        if self.data.source.startswith("text:") and self.export.preprocessing == "fold":
            raise _at(
                ("export", "preprocessing"),
                "token ids are not normalised: there is nothing to fold; tokenizer.json beside the files "
                "makes ids of texts",
            )
        return self

    @model_validator(mode="after")
    def _student_can_start(self) -> Config:
        if self.student.start is None:
            return self
        if self.distill.scheme.entry.name != "offline":
            raise _at(("student", "start"), "goes with the scheme offline only")
        if "features" not in kind_of(self.teacher.model).provides:
            raise _at(("student", "start"), f"needs a network, and {self.teacher.model} is none")
        return self

    @model_validator(mode="after")
    def _teacher_can_give_it(self) -> Config:
        kind = kind_of(self.teacher.model)
        provides = kind.provides
        if kind.Options is not None:
            provides = kind.possible(options(kind, self.teacher.args))
        try:
            check_methods(self.distill.methods.entries, provides, who=self.teacher.model)
        except UsageError as error:
            raise _at(("distill", "methods"), f"{error.what}; {error.fix}") from None
        for position, budget in enumerate(self.gate.budgets):
            if budget.metric in _OF_BOTH_FILES and not kind.exports:
                raise _at(
                    ("gate", "budgets", position),
                    f"{budget.metric} compares with the teacher's file, and {self.teacher.model} only "
                    "answers; limit the student's own latency, memory or size",
                )
        return self


def _section(value: Any, key: str) -> dict[str, Any]:
    """A section of plain data; empty where there is none, or something else in its place."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


# Figures that need a teacher that can be measured.
_OF_BOTH_FILES = ("speedup", "memory_ratio", "compression")


def _at(path: tuple[str | int, ...], text: str) -> PydanticCustomError:
    """An error of two sections together, at the key to change."""
    return PydanticCustomError("sections", "{text}", {"text": text, "path": path})
