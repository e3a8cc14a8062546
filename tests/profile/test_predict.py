"""Prediction: the suite, what a runtime would execute, the cost model, and what is refused."""

import json
import math

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from edgekd.errors import StageError, UsageError
from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.predict import calibrate as calibrating
from edgekd.profile.predict import forecast as forecasting
from edgekd.profile.predict.features import work
from edgekd.profile.predict.model import RuntimeModel, scored, shares
from edgekd.profile.predict.records import Calibration, Observation, Peaks, TimedStep
from edgekd.profile.predict.steps import Step, executed_steps, input_shape
from edgekd.profile.predict.suite import SIZE, suite_network
from edgekd.profile.targets import Target, find
from edgekd.progress import Silent

ORT = "onnxruntime"
PEAKS = Peaks(
    runtime=ORT, threads=1, flops={"f32": 1e11}, bandwidth=1e10, cache_bandwidth=1e11,
    measured="2026-01-01T00:00:00Z",
)  # fmt: skip


def conv(channels, size, kernel="nchwc", type="Conv"):
    return Step(
        name=f"conv{channels}x{size}", type=type, kernel=kernel,
        inputs=((1, channels, size, size),), weights=((channels, channels, 3, 3), (channels,)),
        outputs=((1, channels, size, size),),
    )  # fmt: skip


def true_seconds(step):
    """A device that reaches a fifth of its peak, with a microsecond for each operator."""
    return 5 * work(step).flops / 1e11 + 1e-6


def observation(name, steps, noise=0.0, profiler=2e-6):
    seconds = [true_seconds(step) for step in steps]
    return Observation(
        network=name, runtime=ORT, seconds=(sum(seconds) + 4e-6) * math.exp(noise),
        steps=tuple(
            TimedStep(**dict(step), seconds=t + profiler)
            for step, t in zip(steps, seconds, strict=True)
        ),
    )  # fmt: skip


def networks(count, seed=0):
    random = np.random.default_rng(seed)
    for i in range(count):
        channels = random.integers(1, 9, size=random.integers(3, 12)) * 8
        yield f"n{i}", [conv(int(c), int(random.choice([8, 16, 32]))) for c in channels]


def calibration(count=24, **changes):
    random = np.random.default_rng(1)
    observations = tuple(
        observation(name, steps, 0.01 * random.standard_normal()) for name, steps in networks(count)
    )
    values = {
        "target": "t", "threads": 1, "precision": "f32",
        "versions": {ORT: RUNTIMES[ORT].session.version()}, "device": {"cpu_model": "a CPU"},
        "rooflines": {ORT: PEAKS}, "measured": "2026-01-01T00:00:00Z", "observations": observations,
    }  # fmt: skip
    return Calibration(**(values | changes))


@pytest.fixture(scope="module")
def fitted():
    made = scored(calibration())
    return made, RuntimeModel.of(made, ORT)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small network and a target `pi` that is not attached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/pi.yaml").write_text(
        "name: pi\nclass: edge\ntransport: predicted\nruntimes: [onnxruntime]\n"
    )
    onnx.save(suite_network(1).model, tmp_path / "model.onnx")
    return tmp_path


def predict(*arguments):
    from edgekd.cli import app

    return CliRunner().invoke(app, ["predict", *map(str, arguments)], standalone_mode=False)


def test_the_suite_is_always_the_same_and_every_network_runs():
    for index in (0, 3, 6, 7, 9):
        network = suite_network(index)
        again = suite_network(index)
        assert network.model.SerializeToString() == again.model.SerializeToString()
        onnx.checker.check_model(network.model, full_check=True)
    assert len({suite_network(i).name for i in range(0, SIZE, 20)}) == SIZE / 20


def test_steps_are_what_the_runtime_fuses_with_their_shapes(tmp_path):
    onnx.save(suite_network(1).model, tmp_path / "m.onnx")
    shape = input_shape(tmp_path / "m.onnx", ORT, 1)
    steps = executed_steps(tmp_path / "m.onnx", ORT, shape, threads=1, precision="f32")
    file = onnx.load(tmp_path / "m.onnx").graph
    types = [step.type for step in steps]
    convolutions = [step for step in steps if step.type == "Conv"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in file.node)
    # Activations are fused into the convolutions.
    assert "Relu" not in types
    assert len(steps) < len(file.node)
    assert convolutions[0].inputs[0] == shape


def test_operations_agree_with_the_count_on_paper(tmp_path):
    from edgekd.profile.costs import read_graph

    onnx.save(suite_network(1).model, tmp_path / "m.onnx")
    paper = sum(n.flops for n in read_graph(tmp_path / "m.onnx").nodes if n.type == "Conv")
    steps = executed_steps(tmp_path / "m.onnx", ORT, (1, 1, 28, 28), threads=1, precision="f32")
    # The runtime fills channels up to its blocks.
    counted = sum(work(step).flops for step in steps if step.type == "Conv")
    assert paper <= counted < 3 * paper


def test_what_the_profiler_costs_is_not_in_the_shares():
    made = [observation(name, steps, profiler=3e-6) for name, steps in networks(12)]
    parts, call = shares(made)
    assert call == pytest.approx(4e-6, abs=2e-6)
    for o, share in zip(made, parts, strict=True):
        assert share.sum() + call == pytest.approx(o.seconds)
        truth = [true_seconds(step) for step in o.steps]
        assert share == pytest.approx(truth, rel=0.3, abs=1.5e-6)


def test_networks_that_the_fit_never_saw_are_predicted_and_covered(fitted):
    _, model = fitted
    errors, covered = [], []
    for _, steps in networks(40, seed=7):
        truth = sum(map(true_seconds, steps)) + 4e-6
        estimate = model.predict(steps)
        errors.append(abs(estimate.seconds / truth - 1))
        covered.append(estimate.interval[0] <= truth <= estimate.interval[1])
        assert sum(estimate.steps) == pytest.approx(estimate.seconds)
        assert estimate.unknown == ()
    assert np.median(errors) < 0.05
    # 95 % of 40 are 38; fewer than 34 has a chance of one in a thousand.
    assert sum(covered) >= 34


def test_the_same_calibration_gives_the_same_model(fitted):
    made, model = fitted
    steps = next(networks(1, seed=3))[1]
    assert RuntimeModel.of(made, ORT).predict(steps) == model.predict(steps)


def test_an_operator_that_was_never_seen_is_named_costs_time_and_widens_the_interval(fitted):
    _, model = fitted
    steps = [conv(16, 16), conv(32, 16)]
    strange = [*steps, conv(32, 16, type="Strange")]
    known, unsure = model.predict(steps), model.predict(strange)
    assert unsure.unknown == ("Strange nchwc",)
    assert unsure.steps[-1] > 0
    assert unsure.seconds > known.seconds

    def width(estimate):
        return math.log(estimate.interval[1] / estimate.interval[0])

    assert width(unsure) > 1.5 * width(known)


def test_another_kernel_of_a_known_type_is_as_unknown(fitted):
    _, model = fitted
    assert model.predict([conv(16, 16, kernel="int8")]).unknown == ("Conv int8",)


def test_a_file_keeps_everything(fitted, tmp_path):
    made, _ = fitted
    made.write(tmp_path / "t.cost.json")
    assert Calibration.read(tmp_path / "t.cost.json") == made


@pytest.mark.parametrize(
    "change",
    [
        {"edgekd_cost_model": 2},
        {"threads": 0},
        {"observations": []},
        {"extra": 1},
        {"rooflines": {ORT: {"flops": {"f32": -1}}}},
        {"scores": {ORT: [-1.0]}},
        {"target": "x" * 1000},
    ],
)
def test_a_cost_model_that_edgekd_did_not_write_is_refused(tmp_path, change):
    value = json.loads(calibration(8).model_dump_json()) | change
    (tmp_path / "bad.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match=r"bad\.json"):
        Calibration.read(tmp_path / "bad.json")


@pytest.mark.parametrize("seconds", [0, -1, 1e9, "NaN", None])
def test_latencies_that_cannot_be_are_refused(tmp_path, seconds):
    value = json.loads(calibration(8).model_dump_json())
    value["observations"][0]["seconds"] = seconds
    (tmp_path / "bad.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="observations"):
        Calibration.read(tmp_path / "bad.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x80", '{"a": NaN}'])
def test_no_json_is_one_clear_error(here, text):
    (here / "targets/pi.cost.json").write_text(text)
    result = predict("model.onnx", "--target", "pi")
    assert isinstance(result.exception, UsageError)
    assert "pi.cost.json" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"threads": 2}, "threads 2, not 1"),
        ({"precision": "bf16"}, "precision bf16, not f32"),
        ({"versions": {ORT: "1.0"}}, "version 1.0, not"),
        ({"rooflines": {}}, "networks"),
    ],
)
def test_a_cost_model_of_other_settings_or_versions_is_refused(here, change, word):
    calibration(**change).write(here / "targets/pi.cost.json")
    result = predict("model.onnx", "--target", "pi")
    assert isinstance(result.exception, UsageError)
    assert word in str(result.exception)
    assert "calibrate" in str(result.exception)


def test_without_a_cost_model_the_error_says_how_to_get_one(here):
    result = predict("model.onnx", "--target", "pi")
    assert "edgekd targets calibrate pi" in str(result.exception)


def test_hostile_paths_of_cost_models_are_refused(here):
    for name in ("../secret.json", "/etc/passwd", "a b", "$(id)"):
        (here / "targets/pi.yaml").write_text(
            f"name: pi\nclass: edge\ntransport: predicted\ncost_model: {name!r}\n"
        )
        with pytest.raises(UsageError, match="cost_model"):
            find("pi", here)


def test_predict_prints_the_latency_with_its_interval_and_label(here):
    scored(calibration()).write(here / "targets/pi.cost.json")
    result = predict("model.onnx", "--target", "pi", "--json")
    assert result.exception is None, result.exception
    (found,) = json.loads(result.output)
    low, high = found["latency_p50_interval"]
    assert 0 < low < found["latency_p50"] < high
    assert found["provenance"] == "predicted"
    # The suite's network has pools and products, which that calibration does not know.
    assert found["unknown"]
    assert sum(o["seconds"] for o in found["operators"]) == pytest.approx(found["latency_p50"])
    shown = predict("model.onnx", "--target", "pi")
    assert "predicted, not measured" in shown.output
    assert "not in the cost model" in shown.output


def test_a_model_that_cannot_be_compiled_is_one_clear_error(here):
    calibration().write(here / "targets/pi.cost.json")
    (here / "broken.onnx").write_bytes(b"\x08\x0a")
    result = predict("broken.onnx", "--target", "pi")
    assert isinstance(result.exception, StageError | UsageError)
    assert "broken.onnx" in str(result.exception)


def test_nothing_is_measured_on_a_target_that_is_not_attached(here):
    target = find("pi", here)
    with pytest.raises(StageError, match="only predicted"):
        calibrating.calibrate(target, cache=here / "cache", progress=Silent(), size=1)


def test_calibrating_goes_on_where_it_was(here, monkeypatch):
    target = Target.model_validate({"name": "here", "class": "cpu", "runtimes": [ORT]})
    monkeypatch.setattr(
        calibrating, "PLAN", calibrating.PLAN | {"min_seconds": 0.02, "max_seconds": 0.05}
    )
    monkeypatch.setattr(calibrating, "TURNS", 1)
    first = calibrating.calibrate(target, cache=here / "cache", progress=Silent(), size=1)
    asked = []
    measure = calibrating.measure

    def watched(*arguments, **options):
        asked.append(arguments[1].name)
        return measure(*arguments, **options)

    monkeypatch.setattr(calibrating, "measure", watched)
    more = calibrating.calibrate(target, cache=here / "cache", progress=Silent(), size=2)
    assert asked == [suite_network(1).name]
    assert more.observations[0] == first.observations[0]
    assert [o.network for o in more.observations] == [suite_network(i).name for i in (0, 1)]
    assert all(step.seconds is not None for o in more.observations for step in o.steps)
    assert more.versions == {ORT: RUNTIMES[ORT].session.version()}


def test_of_two_measurements_the_calmer_one_stays():
    def told(seconds, disturbed):
        return {"observations": [{"seconds": seconds}], "disturbed": [disturbed], "turns": 1}

    apart = calibrating.calmer(told(2.0, True), told(1.0, True) | {"turns": 2})
    assert apart == told(1.0, True) | {"turns": 2}
    agree = calibrating.calmer(told(1.01, True), told(1.0, True) | {"turns": 2})
    assert agree == told(1.0, False) | {"turns": 2}


def test_waiting_for_others_is_not_in_the_quiet_latency():
    rounds = np.repeat(np.arange(20), 3)
    wall = np.where(rounds % 2, 4.0, 1.0)
    assert calibrating.quiet_seconds(wall, rounds, None) == (1.0, True)
    assert calibrating.quiet_seconds(wall, rounds, np.full(20, 1.0)) == (1.0, False)


def test_a_predicted_latency_is_labelled_and_never_measured_again(exported, here):
    """Profile and gate of a run whose only target is not attached."""
    from edgekd.config.schema import Budget, Gate, Profile
    from edgekd.gate.again import _open
    from edgekd.gate.budget import check_budgets
    from edgekd.gate.figures import measured
    from edgekd.results import ProfileReport

    scored(calibration()).write(here / "targets/pi.cost.json")

    class Run:
        files, path = exported.files, exported.root

    empty = ProfileReport(measurements=(), comparisons=(), environment={}, warnings=())
    report = forecasting.with_predictions(empty, Run, [find("pi", here)], Profile(), here)
    assert {p.role for p in report.predictions} == {"teacher", "student"}
    assert any("predicted, not measured" in text for text in report.warnings)
    figures = list(measured(report))
    latency = next(f for f in figures if f.metric == "latency_p50")
    assert {f.metric for f in figures} == {"latency_p50", "size"}

    def verdict(limit):
        gate = Gate(budgets=[Budget(metric="latency_p50", max=f"{limit * 1e9:.0f} ns")])
        return check_budgets(gate, figures)

    straddled = verdict(latency.value)
    assert straddled.verdict == "inconclusive"
    assert straddled.checks[0].provenance == "predicted"
    assert "predicted, not measured" in straddled.checks[0].text
    assert _open(straddled, {check.target for check in straddled.checks}) == {}
    assert verdict(latency.interval[1] * 2).verdict == "pass"
    assert verdict(latency.interval[0] / 2).verdict == "fail"
    with pytest.raises(UsageError, match="latency_p99"):
        check_budgets(Gate(budgets=[Budget(metric="latency_p99", max="1 s")]), figures)


def test_batches_are_not_predicted(here, exported):
    from edgekd.config.schema import Profile
    from edgekd.results import ProfileReport

    empty = ProfileReport(measurements=(), comparisons=(), environment={}, warnings=())
    with pytest.raises(UsageError, match=r"profile\.batch_size"):
        forecasting.with_predictions(empty, None, [], Profile(batch_size=8), here)


def test_an_operator_without_inputs_has_features():
    from edgekd.profile.predict.features import matrix

    step = Step(name="x", type="Reshape", weights=((1, 40, 1, 1),), outputs=((40,), (1, 40)))
    nothing = Step(name="y", type="Strange", outputs=((1, 4),))
    assert np.isfinite(matrix([step, nothing], PEAKS, "f32")).all()
