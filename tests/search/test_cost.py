"""What candidates cost before training: measured where attached, else predicted; kept by content."""

import pytest

from edgekd.config.schema import Student
from edgekd.data.resolve import load
from edgekd.errors import StageError, UsageError
from edgekd.search.cost import Coster, places
from tests.profile.test_predict import calibration
from tests.search.conftest import TINY, Lab

AWAY = """name: away
class: edge
transport: {transport}
runtimes: [onnxruntime]
{more}"""
SSH = "ssh: {host: 127.0.0.1, port: 1, timeouts: {connect: 1, reconnect: 1}}\n"
BUDGETS = {"budgets": [{"metric": "latency_p50", "max": "1 s", "target": "away"}]}


def coster(base, transport="predicted", more="", **sections):
    (base / "targets").mkdir(exist_ok=True)
    text = AWAY.format(transport=transport, more=more)
    (base / "targets/away.yaml").write_text(text)
    config = Lab(base, **{"gate": BUDGETS, **sections}).config
    return Coster(config, base, base / "runs", load(config.data, 0, base))


def model(base):
    (base / "targets").mkdir()
    calibration().write(base / "targets/away.cost.json")


SMALL = Student(model="zoo:mlp", args={"hidden": [8]})


@pytest.mark.parametrize(("transport", "more"), [("predicted", ""), ("ssh", SSH)])
def test_a_target_that_is_not_attached_is_predicted_with_its_error(tmp_path, transport, more):
    model(tmp_path)
    found = coster(tmp_path, transport, more)
    (latency,) = [f for f in found.costs(SMALL).figures if f.metric == "latency_p50"]
    assert latency.provenance == "predicted"
    assert latency.interval[0] < latency.value < latency.interval[1]
    assert found.away == (("away",) if transport == "ssh" else ())


def test_a_device_out_of_reach_without_a_cost_model_is_one_error(tmp_path):
    with pytest.raises(StageError, match="cannot be reached") as caught:
        coster(tmp_path, "ssh", SSH).costs(SMALL)
    assert "edgekd targets calibrate away" in caught.value.fix


def test_a_device_that_is_measured_by_hand_is_not_asked_for_every_candidate(tmp_path):
    with pytest.raises(StageError, match="measured by hand"):
        coster(tmp_path, "bundle").costs(SMALL)


def test_costs_are_kept_by_content_and_another_cost_model_is_another_cost(tmp_path):
    model(tmp_path)
    first = coster(tmp_path).costs(SMALL)
    (kept,) = (tmp_path / "runs/.costs").glob("*.json")
    before = kept.stat().st_mtime_ns
    assert coster(tmp_path).costs(SMALL) == first
    assert kept.stat().st_mtime_ns == before
    # Where the weights that it starts from lie, and how it is trained, are no part of it.
    assert coster(tmp_path, distill={**TINY["distill"], "epochs": 9}).known(SMALL) == first
    calibration(count=30).write(tmp_path / "targets/away.cost.json")
    assert coster(tmp_path).known(SMALL) is None


def test_only_what_budgets_speak_of_is_looked_at(tmp_path):
    coster(tmp_path)

    def spoken(*budgets):
        config = Lab(tmp_path, gate={"budgets": list(budgets)}).config
        return {t.name: t.runtimes for t in places(config, tmp_path)}

    size = {"metric": "size", "max": "1 MB"}
    assert spoken({**size, "runtime": "openvino"}) == {"local": ["openvino"]}
    assert spoken(size) == {"local": ["onnxruntime", "openvino"]}
    assert spoken({**size, "target": "away"}) == {"away": ["onnxruntime"]}
    assert spoken({"metric": "accuracy", "min": "90 %"}) == {"local": ["onnxruntime"]}
    with pytest.raises(UsageError, match="has no runtime"):
        spoken({**size, "target": "away", "runtime": "openvino"})
