"""What the stages hand to each other: one typed record per JSON artifact of a run folder.

Latencies are in seconds, sizes and memory in bytes, accuracies and agreements in [0, 1].
An `interval` is a 95 % confidence interval (low, high).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekd.artifacts import read_json, write_json
from edgekd.errors import UsageError

Interval = tuple[float, float]
Role = Literal["teacher", "student"]
Provenance = Literal["measured", "emulated", "predicted"]
Verdict = Literal["pass", "fail", "inconclusive"]
# What the weights of a deployable file are stored and, for int8, computed in.
Variant = Literal["f32", "f16", "int8", "int4"]
# Metrics that say how well answers fit, one per task, as people say them.
SCORES = {"accuracy": "accuracy", "r2": "R²", "r1": "R¹", "miou": "mean IoU"}
QUANTIZED: tuple[Variant, ...] = ("int8", "int4")
# What a latency sample is: one call, or the median or mean of several, where a tool or clock gives no more.
SampleKind = Literal["call", "median", "mean"]


class Record(BaseModel):
    """A JSON artifact: strict keys, no NaN, written atomically."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate. Raises UsageError when the file is missing or was edited."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            problem = "should be a mapping" if first["type"] == "model_type" else first["msg"]
            raise UsageError(
                f"{key}: {problem}" if key else problem,
                where=str(path),
                fix="this file is not what edgekd wrote; delete it and run again",
            ) from None

    @classmethod
    def read_if_whole(cls, path: Path) -> Self | None:
        """What was kept there to spare work; None where it is missing or damaged."""
        try:
            return cls.read(path)
        except UsageError:
            return None

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))


class Tokens(Record):
    """Token ids: int64 in [0, `vocabulary`); texts shorter than the input are filled with `padding`."""

    vocabulary: int
    padding: int


class InputSpec(Record):
    """What a model eats: float32 of `shape` (without the batch), (raw/scale − mean) / std.

    `shape` is (channels, height, width), or (features,). `mean` and `std` have one value per
    channel (or feature); raw values are divided by `scale` first (255 for uint8 images).
    With `tokens` it eats ids, int64 of shape (length,), as they are: `mean` and `std` are empty.
    """

    shape: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens: Tokens | None = None

    @property
    def words(self) -> str:
        """All of it in one line."""
        shape = " × ".join(map(str, self.shape))
        if self.tokens is None:
            return f"float32, {shape}; (raw / {self.scale} − mean) / std, see model.json"
        return f"int64, {shape}: token ids below {self.tokens.vocabulary}, {self.tokens.padding} is padding"


class OutputScale(Record):
    """Outputs are what the network computes × `std` + `mean`, one of each per output."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ModelCard(Record):
    """`teacher/model.json`, `student/model.json`: how to rebuild a network and feed it.

    `task` is what it is for (`tasks/task.py`), `classes` the names of its outputs; `output` is there
    where it was trained here to give numbers in the units of the data. `parameters` is None for a
    teacher that only answers.
    """

    role: Role
    model: str
    args: dict[str, object]
    classes: tuple[str, ...]
    input: InputSpec
    parameters: int | None
    seed: int
    task: str = "classification"
    output: OutputScale | None = None

    @property
    def weight(self) -> str:
        """How many parameters it has, in words."""
        return "answers only" if self.parameters is None else f"{self.parameters:,} parameters"


class Epoch(Record):
    """One epoch: mean of every weighted loss term by name, and the validation figures."""

    epoch: int
    seconds: float
    learning_rate: float
    losses: dict[str, float]
    validation_accuracy: float
    validation_loss: float


class Computing(Record):
    """How training steps were computed; `milliseconds` of a step by candidate, where it was measured.

    `threads` where their number was chosen by measuring.
    """

    device: str = "cpu"
    precision: str = "f32"
    channels_last: bool = False
    compile: bool = False
    threads: int | None = None
    milliseconds: dict[str, float] = {}

    def __str__(self) -> str:
        words = [self.device, self.precision]
        if self.channels_last:
            words.append("channels-last")
        if self.compile:
            words.append("compiled")
        if self.threads is not None:
            words.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        return ", ".join(words)


class History(Record):
    """`history.json` of a training: epochs in order; `best` indexes the one that was kept."""

    epochs: tuple[Epoch, ...]
    best: int
    seconds: float
    computing: Computing | None = None


class Accuracy(Record):
    """Top-1 accuracy with its Wilson interval; `per_class` holds (correct, total) by class.

    For tasks other than classification the `metric` is that task's score, 1 for perfect answers, over
    `total` samples; `per_class` then has (intersection, union) in pixels, or nothing.
    """

    metric: str = "accuracy"
    correct: int | None
    total: int
    value: float
    interval: Interval
    per_class: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """As people say it."""
        return SCORES.get(self.metric, self.metric)


class TrainingReport(Record):
    """`metrics.json` of teacher and student, before export, on both held-out splits.

    None where a teacher has no answers there; of some of the samples where it has answers to those.
    """

    validation: Accuracy | None
    test: Accuracy | None


class SchemeModel(Record):
    """A model that a scheme made: `folder` below `student/`, or None for a teacher made of others.

    `classes` are those that a specialist tells apart.
    """

    name: str
    folder: str | None = None
    model: str | None = None
    classes: tuple[str, ...] | None = None
    validation: Accuracy | None
    test: Accuracy | None


class SchemeReport(Record):
    """`student/scheme.json`: what was trained on the way to the student, in order.

    `alpha` and `methods` (as `distill.methods` are written) are those that were learned by, where the
    configuration left them to edgekd.
    """

    scheme: str
    models: tuple[SchemeModel, ...]
    alpha: float | None = None
    methods: tuple[dict[str, object], ...] | None = None


class ExportedFile(Record):
    """One deployable file; `files` are all its parts, `path` the one to open, both run-relative."""

    role: Role
    format: str
    path: str
    files: tuple[str, ...]
    size: int
    seconds: float
    variant: Variant = "f32"
    opset: int | None = None
    producer: str | None = None
    notes: tuple[str, ...] = ()
    # Quantized only: its weights were trained further, so that parity is with what that has made.
    trained: bool = False

    @property
    def name(self) -> str:
        """ "teacher", "student" or "student-int8"."""
        return self.role if self.variant == "f32" else f"{self.role}-{self.variant}"


class DeviceFile(ExportedFile):
    """The student's file `made_from` in the form that devices want, to be fed and read otherwise.

    `input` "raw": values as sensors give them, of type `input_type`, which the file normalises
    itself. `format` may also be "ort". Verified beside its original, which is what is profiled.
    """

    made_from: str
    input: Literal["normalised", "raw"]
    input_type: Literal["uint8", "float32", "int64"]
    output: Literal["logits", "softmax", "argmax"]


class ExportReport(Record):
    """`export/export.json`."""

    files: tuple[ExportedFile, ...]
    device: tuple[DeviceFile, ...] = ()


class Arithmetic(Record):
    """What types an INT8 file has, for the CPUs that it is meant for.

    With `reduced_range` weights have 7 bits; `cpus` are architecture and ISA of the targets.
    """

    reduced_range: bool
    activations: Literal["uint8", "int8"]
    cpus: tuple[str, ...]


class Calibration(Record):
    """What an INT8 file was calibrated with; `samples` index the data set's training split."""

    recipe: dict[str, object]
    samples: tuple[int, ...]
    arithmetic: Arithmetic


class LayerSensitivity(Record):
    """What quantizing one layer alone does to the logits of a few calibration samples.

    `snr` is in dB, against the float32 file (None where nothing changes); `divergence` is the
    mean of KL(teacher ‖ ·) and KL(student ‖ ·) in nats, less that of the float32 file.
    """

    layer: str
    snr: float | None
    divergence: float


class TradeOff(Record):
    """One evaluation: with so many layers, the most sensitive first, left in float32."""

    reverted: int
    accuracy: float
    size: int


class AccuracyAware(Record):
    """How layers were reverted until accuracy on the validation split held.

    `sensitivities` are in falling order; `curve` has every evaluation, by number of layers;
    `reverted` is the number that was kept.
    """

    format: str
    max_drop: float
    samples: int
    float32: float
    size_float32: int
    sensitivities: tuple[LayerSensitivity, ...]
    curve: tuple[TradeOff, ...]
    reverted: int


class LayerSpeed(Record):
    """Latency with one layer left in float32, by that with every layer quantized; below 1: faster."""

    layer: str
    ratio: float
    interval: tuple[float, float]
    kept_float32: bool


class SpeedAware(Record):
    """What was measured of an INT8 file's layers on a target; `left_out` had no time left."""

    format: str
    target: str
    runtime: str
    layers: tuple[LayerSpeed, ...]
    left_out: tuple[str, ...]
    seconds: float


class BackendSpeed(Record):
    """Median latencies (seconds) of one format's INT8 files by backend, measured in turns."""

    format: str
    target: str
    runtime: str
    float32: float
    backends: dict[str, float]
    chosen: str


class QatParity(Record):
    """An INT8 file against the fake-quantized PyTorch model it was made from, on validation samples."""

    format: str
    runtime: str
    samples: int
    max_error: float
    snr: float | None
    agreement: float


class QatReport(Record):
    """Training with fake quantization: accuracies (shares) on the validation split, in PyTorch.

    `validation_f32` is the student's, `validation_before` and `validation_after` the fake-quantized
    one's. What is deployed is trained where that lost nothing (`kept`), else what it began with.
    """

    history: History
    validation_f32: float
    validation_before: float
    validation_after: float
    kept: bool = True
    parity: tuple[QatParity, ...] = ()


class QuantizeReport(Record):
    """`quantized/quantize.json`; without files when the run does not quantize."""

    files: tuple[ExportedFile, ...]
    calibration: Calibration | None
    device: tuple[DeviceFile, ...] = ()
    accuracy_aware: tuple[AccuracyAware, ...] = ()
    speed_aware: tuple[SpeedAware, ...] = ()
    backends: tuple[BackendSpeed, ...] = ()
    qat: QatReport | None = None


class Parity(Record):
    """One exported file against the PyTorch model it came from, on the same inputs.

    `max_error` is max|Δlogit| / max|reference logit|; it must not exceed `tolerance`. `snr` is in
    dB, None for equal logits. `batch_one_error` is that of samples fed one at a time, as devices
    do; `max_error` and the other figures include them.
    `teacher_agreement` is the share of test samples with the teacher's own top-1 answer, of those that
    it has an answer to; None where it has none. Agreements are None where there are no classes, and
    shares of pixels where those have classes.
    """

    role: Role
    format: str
    variant: Variant = "f32"
    runtime: str
    path: str
    precision: str
    samples: int
    max_abs_error: float
    max_error: float
    batch_one_error: float | None = None
    snr: float | None = None
    cosine: float
    agreement: float | None
    agreement_interval: Interval | None = None
    teacher_agreement: float | None
    tolerance: float
    passed: bool
    accuracy: Accuracy


class InputCase(Record):
    """One kind of inputs through a file and its source; errors as in `Parity`.

    `max_error` is a share of the largest logit of the source, for these or for real samples.
    `tolerance` None: told, not judged, as for INT8 files beyond what they were calibrated for.
    Without errors, `note` says why.
    """

    inputs: str
    samples: int
    max_abs_error: float | None = None
    max_error: float | None = None
    snr: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    agreement_interval: Interval | None = None
    tolerance: float | None
    passed: bool
    note: str = ""


class Edge(Record):
    """A file, computed by `runtime` in `precision`, against `source`: "PyTorch" or another file.

    The first of `cases` are real samples in the largest batch.
    """

    role: Role
    variant: Variant
    path: str
    runtime: str
    precision: str
    source: str
    cases: tuple[InputCase, ...] = Field(min_length=1)

    @property
    def passed(self) -> bool:
        """Whether every kind of inputs did."""
        return all(case.passed for case in self.cases)

    @property
    def worst(self) -> InputCase:
        """One that failed, or else that nearest to its tolerance."""
        return max(
            self.cases, key=lambda c: (not c.passed, (c.max_error or 0) / (c.tolerance or 1e9))
        )


class Layer(Record):
    """The output of a PyTorch module as a file computes it, fed the same network inputs.

    `type` is the file's operator that makes it, `weights` the parameter that it reads: a
    convolution with a folded batch normalization bears the latter's path. `shape` is without the
    batch. `max_error` is max|Δ| / max|PyTorch's|, None where the file's is not finite.
    """

    module: str
    type: str
    weights: str | None
    tensor: str
    shape: tuple[int, ...]
    max_error: float | None
    snr: float | None

    @property
    def label(self) -> str:
        """The module, and whose weights it has where that is another."""
        owner = (self.weights or "").rpartition(".")[0]
        name = self.module or "the model's output"
        return f"{name} (weights of {owner})" if owner and owner != self.module else name


class LayerComparison(Record):
    """What `edgekd verify --layers` prints of one file, in the order of execution.

    `inputs` are those of `verify` that the file fails on, by `error` (a share of the largest logit, or
    why there is none); "" where it passes: then the samples are the first of the test split. `note`
    is what else is known of a failure, or why there are no layers.
    """

    role: Role
    variant: Variant
    path: str
    runtime: str
    samples: int
    tolerance: float
    layers: tuple[Layer, ...]
    inputs: str = ""
    error: float | str | None = None
    note: str = ""

    @property
    def broken(self) -> Layer | None:
        """The first layer past the tolerance, of a file whose layers must not be: INT8's are rounded."""
        whole = self.variant in ("f32", "f16")
        return self.layers[self.first] if whole and self.first is not None else None

    @property
    def first(self) -> int | None:
        """The position of the first layer whose error is past the tolerance."""
        past = (
            position
            for position, layer in enumerate(self.layers)
            if layer.max_error is None or layer.max_error > self.tolerance
        )
        return next(past, None)


class DeviceFileParity(Record):
    """A device file against the file that it was made from, on the whole test split.

    `max_error` is max|Δlogit| / max|logit|, or max|Δprobability|; None for class numbers. It must
    not exceed `tolerance`. `agreement` is the share of samples with the same top-1 answer; of the
    others, `undecided` answered with a logit as good as the best one within the tolerance.
    """

    path: str
    format: str
    variant: Variant
    runtime: str
    input: Literal["normalised", "raw"]
    input_type: Literal["uint8", "float32", "int64"]
    output: Literal["logits", "softmax", "argmax"]
    samples: int
    max_error: float | None
    agreement: float
    undecided: int
    tolerance: float
    passed: bool
    accuracy: Accuracy


class VerifyReport(Record):
    """`verify/parity.json`; `reference` is the accuracy before export, on the same test split.

    Without a teacher that has no answers there.
    `notes` are what could not be verified, on this machine or in runtimes that a file is not meant for.
    """

    reference: dict[Role, Accuracy]
    files: tuple[Parity, ...]
    device: tuple[DeviceFileParity, ...] = ()
    edges: tuple[Edge, ...] = ()
    notes: tuple[str, ...] = ()


class Latency(Record):
    """Seconds per call at `batch_size`; every sample is in `profile/samples.npz` under `samples`.

    Where `kind` is "median" or "mean" (where a clock is too coarse for single calls), quantiles other
    than the median are those of medians or means, not of calls.
    """

    batch_size: int
    count: int
    p50: float
    p90: float
    p99: float
    mean: float
    min: float
    max: float
    p50_interval: Interval
    p90_interval: Interval
    p99_interval: Interval
    steady: bool
    samples: str
    kind: SampleKind = "call"
    p95: float | None = None
    p95_interval: Interval | None = None
    mean_interval: Interval | None = None


class Scenario(Record):
    """A figure by the procedure of an MLPerf Inference scenario, from `queries` of `batch_size` samples.

    `latency` (seconds) is loadgen's early-stopping estimate of the scenario's percentile: with 99 %
    confidence the percentile is no greater. `throughput` is in samples per second.
    """

    name: Literal["SingleStream", "MultiStream", "Offline"]
    batch_size: int
    queries: int
    latency: float | None = None
    throughput: float | None = None


class Repeated(Record):
    """Something done once per launch: the median, and all values in order (seconds)."""

    median: float
    values: tuple[float, ...]


class ColdStart(Record):
    """From a fresh process to the first answer, in every launch; the model's file in the page cache.

    (In the first launch it may not have been.) `runtime` loads the runtime's libraries, `load` the
    model, of which `compile` is a part where the runtime separates it, `first` is the first inference.
    """

    runtime: Repeated
    load: Repeated
    compile: Repeated | None
    first: Repeated


class Memory(Record):
    """Bytes. `model` is `peak_rss` − `baseline_rss`, the process before the model was loaded.

    Of the baseline, `python_rss` is Python's and numpy's share, which a C++ program has not.
    `private_dirty` is what the model added to the memory that no other process can share. `weights`
    is the weights' share of the file. Medians over the launches.

    None where it was not measured: browsers do not tell. There `wasm_heap` is how much memory
    WebAssembly had at most, runtime included; it grows in large steps.
    """

    peak_rss: int | None
    baseline_rss: int | None
    model: int | None
    python_rss: int | None = None
    private_dirty: int | None = None
    weights: int | None = None
    wasm_heap: int | None = None


class DeviceParity(Record):
    """A file's outputs on the device against those of the same file here, on `samples` test inputs.

    `max_error` is max|Δlogit| / max|logit here|, `agreement` the share with the same top-1 answer;
    `accuracy` is that on the device, `accuracy_here` that of the same samples here; these are None where
    outputs are no logits of one class per sample. `tolerance` is the configuration's for the file.
    """

    samples: int
    max_error: float
    agreement: float | None
    accuracy: float | None
    accuracy_here: float | None
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is the same function there."""
        return self.max_error <= self.tolerance


class Energy(Record):
    """Joules of the processor per sample, idle power and neighbours included (`device/energy.py`)."""

    value: float
    interval: Interval | None


class Measurement(Record):
    """One file in one runtime on one target, in processes of its own.

    `latency` is at the profile's batch size (1 unless configured); `throughput` is samples per
    second over all calls of `throughput_latency`, at a larger batch. `load` is seconds from file to
    ready, `first` the first inference. `precision` is what the runtime says it executed. `noise` says
    what slowed it down that is not the model's: latencies are upper bounds then. `compressed_size` is
    that of the files deflated, as app stores ship them.
    `device_parity` is there where the device also checked the outputs; `parity_error` where they
    were checked here: max|Δ| / max|reference| against ONNX Runtime's on this machine.
    """

    role: Role
    format: str
    variant: Variant = "f32"
    runtime: str
    runtime_version: str
    target: str
    path: str
    precision: str
    threads: int
    provenance: Provenance
    conclusive: bool
    latency: Latency
    throughput: float
    throughput_interval: Interval
    throughput_latency: Latency
    memory: Memory
    size: int
    load: float
    first: float
    warmup: int
    device_parity: DeviceParity | None = None
    launches: int = 1
    noise: tuple[str, ...] = ()
    cold: ColdStart | None = None
    scenarios: tuple[Scenario, ...] = ()
    energy: Energy | None = None
    compressed_size: int | None = None
    parity_error: float | None = None


class Comparison(Record):
    """Teacher against a student of this variant in the same runtime, from interleaved blocks.

    `speedup` is teacher's p50 / student's p50; `compression` and `memory_ratio` likewise (None
    where memory was not measured).
    """

    target: str
    variant: Variant = "f32"
    runtime: str
    speedup: float
    speedup_interval: Interval
    memory_ratio: float | None
    compression: float


class Prediction(Record):
    """One file in one runtime on a target that is not attached: nothing here was measured.

    `p50` is the median latency at batch size 1, `interval` holds 95 % of models like those of the
    calibration. `unknown` are operator types that the cost model has not seen; `calibrated` is when
    and on which CPU it was measured.
    """

    role: Role
    format: str
    variant: Variant = "f32"
    runtime: str
    runtime_version: str
    target: str
    path: str
    precision: str
    threads: int
    provenance: Literal["predicted"] = "predicted"
    p50: float
    p50_interval: Interval
    size: int
    unknown: tuple[str, ...]
    calibrated: str


class ProfileReport(Record):
    """`profile/profile.json`; `environment` maps a target to what its device said of itself."""

    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]
    environment: dict[str, dict[str, object]]
    warnings: tuple[str, ...]
    predictions: tuple[Prediction, ...] = ()


class Check(Record):
    """One budget against one measured value of the student's files of this variant.

    `limit` reads like "≤ 1 point"; `label` is the class, for a budget on one. `value` is None where
    it could not be measured; `shown` is it in words, with its interval and what to know of it.
    """

    metric: str
    label: str | None = None
    target: str | None
    runtime: str
    variant: Variant = "f32"
    value: float | None
    interval: Interval | None
    limit: str
    verdict: Verdict
    text: str
    provenance: Provenance = "measured"
    shown: str = ""


class GateReport(Record):
    """`gate/gate.json`; `exit_code` is 0 pass, 1 a budget is broken, 4 inconclusive.

    `held_to` is the section `gate` of the configuration that it was held to, options included.
    """

    verdict: Verdict
    exit_code: int
    checks: tuple[Check, ...]
    held_to: dict[str, Any] = {}


class Costs(Record):
    """What one file's graph asks for at `batch_size`, whoever runs it. Sizes in the file's types.

    `moved_bytes` is read and written when no operators are fused; `peak_activation_bytes` the most
    that lives at once in the file's order. `guessed` are operator types without a formula, counted
    as one operation per element.
    """

    role: Role
    variant: Variant = "f32"
    path: str
    batch_size: int
    flops: float
    weight_bytes: int
    moved_bytes: int
    peak_activation_bytes: int
    guessed: tuple[str, ...]


class Operator(Record):
    """One operator as the runtime executed it; `nodes` are the file's operators that it does.

    `module` is where most of them come from in PyTorch: a dotted path, "" the model itself, None
    unknown. `flops` and `bytes` are theirs together, None where no operator of the file is known.
    """

    name: str = Field(max_length=1000)
    type: str = Field(max_length=200)
    kernel: str = Field("", max_length=200)
    module: str | None
    seconds: float = Field(ge=0)
    flops: float | None
    bytes: int | None
    nodes: tuple[str, ...]


class OperatorProfile(Record):
    """One file in one runtime on one target, operator by operator; mean seconds per inference.

    `wall` is the whole inference while the runtime's profiler watches, which makes it slower than
    the measured latency. Without operators, `error` says why.
    """

    role: Role
    format: str
    variant: Variant = "f32"
    runtime: str
    target: str
    batch_size: int
    runs: int = Field(ge=0)
    wall: float = Field(ge=0)
    operators: tuple[Operator, ...]
    error: str = ""

    @property
    def mapped(self) -> float:
        """The share of the operators' time whose PyTorch module is known."""
        total = sum(o.seconds for o in self.operators)
        known = sum(o.seconds for o in self.operators if o.module is not None)
        return known / total if total else 0.0


class Roofline(Record):
    """What a target does at most in a runtime: FLOP/s by precision, bytes/s of copies.

    `bandwidth` is that of the memory, `cache_bandwidth` that of the caches. `measured` is when.
    """

    target: str
    runtime: str = Field(max_length=64)
    threads: int
    flops: dict[str, Annotated[float, Field(gt=0)]] = Field(max_length=8)
    bandwidth: float = Field(gt=0)
    cache_bandwidth: float = Field(gt=0)
    measured: str = Field(max_length=40)
    provenance: Provenance


class OperatorsReport(Record):
    """`profile/operators.json`; `notes` say what is not available, and why."""

    costs: tuple[Costs, ...]
    profiles: tuple[OperatorProfile, ...]
    rooflines: tuple[Roofline, ...]
    notes: tuple[str, ...]
