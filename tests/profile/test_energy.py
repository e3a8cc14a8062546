"""Energy as Linux tells it: real counters where there are any, and files like the kernel's elsewhere."""

import pytest

from edgekd.config.schema import Budget, Gate
from edgekd.gate.budget import check_budgets
from edgekd.gate.figures import Figure
from edgekd.profile.device import energy
from edgekd.profile.measure import _energy


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Two packages, the core part of one, and the whole board."""
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"),
                       ("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys")):  # fmt: skip
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("900\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000\n")
    return tmp_path


def test_packages_are_added_up_and_a_full_counter_starts_again(powercap):
    before = energy.counters()
    assert set(before) == {"intel-rapl:0", "intel-rapl:1"}
    (powercap / "intel-rapl:0/energy_uj").write_text("950")
    (powercap / "intel-rapl:1/energy_uj").write_text("20")
    assert energy.joules(before, energy.counters()) == pytest.approx((50 + 120) / 1e6)


def test_what_cannot_be_read_is_no_figure(powercap):
    (powercap / "intel-rapl:1/energy_uj").write_text("none")
    assert energy.counters() is None
    assert energy.joules({"intel-rapl:0": 1}, None) is None


def test_a_machine_without_counters_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path / "powercap")
    assert energy.counters() is None


def test_launches_give_the_interval_and_one_that_cannot_tell_takes_the_figure_away():
    found = _energy([1e-3, 1.1e-3, 0.9e-3])
    assert found.interval[0] < found.value < found.interval[1]
    assert found.value == pytest.approx(1e-3, rel=0.02)
    assert _energy([1e-3, None]) is None
    assert _energy([]) is None


@pytest.mark.parametrize(
    ("limit", "verdict"), [("2 mJ", "pass"), ("1 mJ", "inconclusive"), ("500 µJ", "fail")]
)
def test_a_budget_on_energy_is_held_against_its_interval(limit, verdict):
    found = _energy([1e-3, 1.1e-3, 0.9e-3])
    figure = Figure("energy", found.value, found.interval, "onnxruntime", "board")
    gate = Gate(budgets=[Budget(metric="energy", max=limit)])
    assert check_budgets(gate, [figure]).verdict == verdict
