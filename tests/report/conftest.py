"""Run folders with plausible results, written with the records that the stages write."""

import io

import numpy as np
import pytest

from edgekd.artifacts import sha256_file, write_bytes, write_text
from edgekd.config.schema import Config
from edgekd.pipeline.run import Artifact, Manifest, Run, StageRecord
from edgekd.report.html import render
from edgekd.results import (
    Accuracy,
    Check,
    Comparison,
    Epoch,
    ExportedFile,
    ExportReport,
    GateReport,
    History,
    InputSpec,
    Latency,
    Measurement,
    Memory,
    ModelCard,
    Parity,
    ProfileReport,
    QuantizeReport,
    TrainingReport,
    VerifyReport,
)
from edgekd.statistics import wilson

STAGES = ("teacher", "distill", "export", "quantize", "verify", "profile", "gate")
FOLDERS = {"distill": "student", "quantize": "quantized"}
DIGITS = tuple("0123456789")

# Median seconds per call and bytes, as an i7 laptop gives them for the digits example.
P50 = {
    ("onnxruntime", "teacher"): 412e-6,
    ("onnxruntime", "student"): 38.4e-6,
    ("openvino", "teacher"): 371e-6,
    ("openvino", "student"): 61.2e-6,
}
SIZE = {
    ("onnx", "teacher"): 4_395_841,
    ("onnx", "student"): 28_349,
    ("openvino", "teacher"): 4_452_101,
    ("openvino", "student"): 51_208,
}
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}


def accuracy(correct_by_class, total_by_class):
    correct, total = sum(correct_by_class), sum(total_by_class)
    return Accuracy(
        correct=correct, total=total, value=correct / total, interval=wilson(correct, total),
        per_class=tuple(zip(correct_by_class, total_by_class, strict=True)),
    )  # fmt: skip


TOTAL = [54, 54, 53, 55, 54, 55, 54, 54, 52, 55]
TEACHER = accuracy([54, 54, 53, 54, 54, 54, 54, 54, 50, 54], TOTAL)
STUDENT = accuracy([54, 53, 53, 53, 54, 54, 53, 54, 50, 53], TOTAL)


def latency(samples, key, batch):
    def interval(q):
        spread = 1.96 * np.sqrt(q * (1 - q) / len(samples))
        return tuple(map(float, np.quantile(samples, [max(0, q - spread), min(1, q + spread)])))

    p50, p90, p99 = map(float, np.quantile(samples, [0.5, 0.9, 0.99]))
    return Latency(
        batch_size=batch, count=len(samples), p50=p50, p90=p90, p99=p99,
        mean=float(samples.mean()), min=float(samples.min()), max=float(samples.max()),
        p50_interval=interval(0.5), p90_interval=interval(0.9), p99_interval=interval(0.99),
        steady=True, samples=key,
    )  # fmt: skip


def answers(labels, model):
    """Logits that are right as often as `model` per class; the mistakes are the class's last samples."""
    given = labels.copy()
    for label, (correct, total) in enumerate(model.per_class):
        given[np.flatnonzero(labels == label)[correct:total]] = (label + 3) % 10
    return np.eye(10, dtype=np.float32)[given] * 5


class Builder:
    """Writes a run folder stage by stage; attributes may be changed before `build`."""

    def __init__(self, path):
        self.path = path
        self.classes = DIGITS
        self.shape = (1, 8, 8)
        self.targets = ["local"]
        self.budgets = True
        self.command = "edgekd compress --example digits"
        self.model = {"teacher": "zoo:resnet20x2", "student": "zoo:dscnn"}
        self.environment = {
            "machine": {"cpu": "Intel(R) Core(TM) i7-1365U", "isa": ["avx2", "fma", "avx_vnni"]},
            "packages": {"torch": "2.13.0", "onnxruntime": "1.31.0", "openvino": "2026.4.0"},
            "git": "d54d7b5a1c02",
        }

    def build(self, *stages):
        """The run with these stages done; all of them by default."""
        run = Run(self.path)
        done = {}
        for stage in stages or STAGES:
            getattr(self, f"_{stage}")(run)
            folder = self.path / FOLDERS.get(stage, stage)
            done[stage] = StageRecord(
                key=f"{STAGES.index(stage):064x}",
                started=f"2026-11-21T07:0{STAGES.index(stage)}:12+00:00",
                seconds=12.3 * (STAGES.index(stage) + 1),
                artifacts={
                    str(p.relative_to(self.path)): Artifact(
                        sha256=sha256_file(p), size=p.stat().st_size, mtime_ns=p.stat().st_mtime_ns
                    )
                    for p in sorted(folder.rglob("*"))
                },
            )
        config = {
            "name": "digits",
            "teacher": {"model": self.model["teacher"]},
            "student": {"model": self.model["student"], "args": {"width": 24, "depth": 2}},
            "profile": {"targets": self.targets},
        }
        run.write_manifest(
            Manifest(
                edgekd="0.1.0",
                command=self.command,
                base="/home/ada/digits",
                config=Config.model_validate(config).model_dump(mode="json"),
                environment=self.environment,
                stages=done,
            )
        )
        return run

    def _teacher(self, run):
        self._trained("teacher", 1_085_786, 25, {"ce": 1.0}, TEACHER)

    def _distill(self, run):
        self._trained("student", 4_922, 60, {"ce": 0.16, "kd": 3.1}, STUDENT)

    def _trained(self, role, parameters, epochs, terms, test):
        folder = self.path / role
        ModelCard(
            role=role, model=self.model[role], args={}, classes=self.classes, parameters=parameters,
            seed=0, input=InputSpec(shape=self.shape, scale=16, mean=(0.3,), std=(0.38,)),
        ).write(folder / "model.json")  # fmt: skip
        TrainingReport(validation=accuracy([12] * 10, [13] * 10), test=test).write(
            folder / "metrics.json"
        )
        noise = np.random.default_rng(7).normal(1, 0.05, (epochs, 3))
        history = [
            Epoch(
                epoch=i,
                seconds=0.4,
                learning_rate=0.1,
                losses={
                    name: start * float(noise[i, 0]) * (0.004 + np.exp(-7 * i / epochs))
                    for name, start in terms.items()
                },
                validation_accuracy=min(0.992, 0.98 - 0.7 * float(np.exp(-i / 3) * noise[i, 1])),
                validation_loss=0.1,
            )
            for i in range(epochs)
        ]
        best = max(range(epochs), key=lambda i: history[i].validation_accuracy)
        History(epochs=tuple(history), best=best, seconds=epochs * 0.4).write(
            folder / "history.json"
        )

    def _export(self, run):
        ExportReport(
            files=tuple(
                ExportedFile(
                    role=role, format=format, path=self._file(format, role),
                    files=(self._file(format, role),), size=SIZE[format, role],
                    seconds=1.2, opset=20 if format == "onnx" else None,
                )
                for format in ("onnx", "openvino") for role in ("teacher", "student")
            )
        ).write(self.path / "export/export.json")  # fmt: skip

    def _quantize(self, run):
        QuantizeReport(files=(), calibration=None).write(self.path / "quantized/quantize.json")

    def _verify(self, run):
        VerifyReport(
            reference={"teacher": TEACHER, "student": STUDENT},
            files=tuple(
                Parity(
                    role=role, format=format, runtime=runtime, path=self._file(format, role),
                    precision="f32", samples=256, max_abs_error=4.1e-5, max_error=2.3e-6,
                    cosine=0.9999999, agreement=1.0,
                    teacher_agreement=1.0 if role == "teacher" else 0.9852, tolerance=1e-4,
                    passed=True, accuracy=TEACHER if role == "teacher" else STUDENT,
                )
                for runtime, format in FORMATS.items() for role in ("teacher", "student")
            ),
        ).write(self.path / "verify/parity.json")  # fmt: skip
        labels = np.repeat(np.arange(10), TOTAL)
        logits = {
            f"{runtime}/{role}": answers(labels, model)
            for runtime in FORMATS for role, model in (("teacher", TEACHER), ("student", STUDENT))
        }  # fmt: skip
        positions = np.array([54, 55, 162, 163, 164, 107])
        self._npz("verify/logits.npz", labels=labels, indices=np.arange(540) + 1000, **logits)
        self._npz("verify/examples.npz", positions=positions, inputs=self.inputs(positions))

    def _npz(self, path, **arrays):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(self.path / path, buffer.getvalue())

    def inputs(self, positions):
        """Raw values of some test samples, of the shape that the cards say."""
        random = np.random.default_rng(3)
        return random.integers(0, 17, (len(positions), *self.shape)).astype(np.uint8)

    def _profile(self, run):
        random = np.random.default_rng(0)
        arrays, measurements, comparisons = {}, [], []
        for target in self.targets:
            slower = 1 if target == self.targets[0] else 3.7
            for runtime, format in FORMATS.items():
                pair = {}
                for role in ("teacher", "student"):
                    median = P50[runtime, role] * slower
                    body = random.lognormal(np.log(median), 0.05, 3000)
                    stalls = random.random(3000) < 0.03
                    samples = body * np.where(stalls, random.lognormal(0.8, 0.3, 3000), 1)
                    key = f"{target}/{runtime}/{role}"
                    arrays[key] = samples
                    batch = samples[:400] * 14
                    arrays[f"{key}/throughput"] = batch
                    baseline = 61_000_000 if runtime == "onnxruntime" else 93_000_000
                    model = 14_200_000 if role == "teacher" else 1_310_000
                    many = latency(batch, f"{key}/throughput", 32)
                    pair[role] = Measurement(
                        role=role, format=format, runtime=runtime,
                        runtime_version={"onnxruntime": "1.31.0", "openvino": "2026.4.0"}[runtime],
                        target=target, path=self._file(format, role), precision="f32", threads=1,
                        provenance="measured", conclusive=True, latency=latency(samples, key, 1),
                        throughput=32 / many.p50,
                        throughput_interval=tuple(32 / p for p in reversed(many.p50_interval)),
                        throughput_latency=many,
                        memory=Memory(
                            peak_rss=baseline + model, baseline_rss=baseline, model=model
                        ),
                        size=SIZE[format, role], load=0.031 if role == "teacher" else 0.0063,
                        first=median * 9, warmup=120,
                    )  # fmt: skip
                measurements += pair.values()
                teacher, student = pair["teacher"], pair["student"]
                speedup = teacher.latency.p50 / student.latency.p50
                comparisons.append(
                    Comparison(
                        target=target,
                        runtime=runtime,
                        speedup=speedup,
                        speedup_interval=(speedup * 0.99, speedup * 1.01),
                        memory_ratio=teacher.memory.model / student.memory.model,
                        compression=teacher.size / student.size,
                    )
                )
        machine = {
            "cpu": "Intel(R) Core(TM) i7-1365U", "cores": 12, "governor": "performance",
            "frequency_mhz": {"min": 3180.2, "max": 3712.9}, "throttled": False,
            "isa": ["avx2", "fma", "avx_vnni"],
        }  # fmt: skip
        ProfileReport(
            measurements=tuple(measurements),
            comparisons=tuple(comparisons),
            environment=dict.fromkeys(self.targets, machine),
            warnings=("local: load average 1.8 on 12 cores while measuring",),
        ).write(self.path / "profile/profile.json")
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(self.path / "profile/samples.npz", buffer.getvalue())

    def _gate(self, run):
        checks = []
        if self.budgets:
            for runtime in FORMATS:
                checks += [
                    self._check("accuracy_drop", None, runtime, 0.00926, (-0.001, 0.019), "≤ 1.00 points"),
                    self._check("speedup", "local", runtime, 8.1, (7.9, 8.3), "≥ 3×"),
                    self._check("compression", "local", runtime, 155.0, None, "≥ 10×"),
                    self._check("parity_error", None, runtime, 2.3e-6, None, "≤ 0.0001"),
                ]  # fmt: skip
        GateReport(verdict="pass", exit_code=0, checks=tuple(checks)).write(
            self.path / "gate/gate.json"
        )

    def _check(self, metric, target, runtime, value, interval, limit, verdict="pass"):
        return Check(
            metric=metric, target=target, runtime=runtime, value=value, interval=interval,
            limit=limit, verdict=verdict, text=f"{metric} on {runtime}: {value}, budget {limit}",
        )  # fmt: skip

    @staticmethod
    def _file(format, role):
        return f"export/{role}.{'onnx' if format == 'onnx' else 'xml'}"


def rewrite(run, stage, path, change):
    """Change a JSON artifact of a finished stage as if the stage had written it so."""
    import json

    file = run.path / path
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    write_text(file, json.dumps(value))
    manifest = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    stat = file.stat()
    manifest["stages"][stage]["artifacts"][path] = {
        "sha256": sha256_file(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
    }  # fmt: skip
    write_text(run.path / "run.json", json.dumps(manifest))


@pytest.fixture
def builder(tmp_path):
    return Builder(tmp_path / "digits")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A complete run, never changed by a test."""
    return Builder(tmp_path_factory.mktemp("report") / "digits").build()


@pytest.fixture(scope="session")
def source(finished):
    """The HTML of the complete run."""
    return render(finished)
