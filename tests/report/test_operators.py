"""The section "Where the time goes", and `edgekd operators`."""

import json

import pytest
from click.testing import CliRunner

from edgekd.cli.operators import command
from edgekd.errors import UsageError
from edgekd.report.data import document
from edgekd.report.html import render
from edgekd.report.operators import by, module_name
from edgekd.results import Costs, Operator, OperatorProfile, OperatorsReport, Roofline
from tests.report.test_html import HOSTILE, page, words


def operator(name, type, module, seconds, flops=1e6, size=1e4):
    return Operator(
        name=name, type=type, module=module, seconds=seconds, flops=flops, bytes=size, nodes=(name,)
    )


OPERATORS = {
    "teacher": [operator(f"c{i}", "Conv", f"layer{i % 3}.{i}.conv1", 20e-6 + i * 1e-6) for i in range(15)]
    + [operator("fc", "Gemm", "fc", 4e-6), operator("r", "Reorder", None, 3e-6, None, None)],
    "student": [
        operator("c", "Conv", "0", 9e-6), operator("p", "Pool", "", 2e-6, 0), operator("fc", "Gemm", "5", 0)
    ],
}  # fmt: skip


def operators_report(**changes):
    profiles = tuple(
        OperatorProfile(
            role=role, format="onnx", runtime=runtime, target="local", batch_size=1, runs=50,
            wall=600e-6 if role == "teacher" else 20e-6, operators=tuple(OPERATORS[role]),
        )
        for runtime in ("onnxruntime", "openvino") for role in ("teacher", "student")
    )  # fmt: skip
    costs = tuple(
        Costs(
            role=role, path=f"export/{role}.onnx", batch_size=1, flops=flops, weight_bytes=4_000_000,
            moved_bytes=5_000_000, peak_activation_bytes=196_608, guessed=guessed,
        )
        for role, flops, guessed in (("teacher", 81.9e6, ()), ("student", 3.2e6, ("Det",)))
    )  # fmt: skip
    roofs = tuple(
        Roofline(
            target="local", runtime=runtime, threads=1, flops={"f32": 180e9, "int8": 1.8e12},
            bandwidth=17e9, cache_bandwidth=95e9, measured="2026-11-21T11:04:50Z", provenance="measured",
        )
        for runtime in ("onnxruntime", "openvino")
    )  # fmt: skip
    return OperatorsReport(costs=costs, profiles=profiles, rooflines=roofs, notes=()).model_copy(
        update=changes
    )


@pytest.fixture
def run(builder):
    run = builder.build()
    operators_report().write(run.path / "profile/operators.json")
    return run


def test_both_models_are_there_by_kind_and_by_module_and_on_the_roofline(run):
    text = words(page(run))
    for runtime in ("onnxruntime", "openvino"):
        for title in ("Time by kind of operator", "Time by module", "Roofline"):
            assert f"{title}, {runtime} on local" in text
    assert "81.9 MFLOP" in text
    assert "192 KiB" in text
    assert "17 others" not in text
    # 15 convolutions of 20 to 34 µs: 405 µs of 600.
    for cell in ("405 µs", "67.5%"):
        assert cell in text
    assert "matrix products 180 GFLOP/s in f32; copies" in text
    assert "int8" not in text.split("matrix products")[1][:60]
    assert "counted as one operation per element: Det." in text


def test_deep_networks_are_shown_by_their_blocks(run):
    text = words(page(run))
    for block in ("layer0", "layer1", "layer2", "fc", "(the model itself)", "(unknown)"):
        assert block in text
    assert "teacher, layer2.14.conv1: Conv" in text  # on the roofline, in full


def test_shares_are_of_the_whole_inference_and_add_up_to_it():
    profile = operators_report().profiles[0]
    for key in (lambda o: o.type, module_name, lambda o: o.name):
        assert sum(share.share for share in by(profile, key)) == pytest.approx(1)
        assert sum(share.seconds for share in by(profile, key)) == pytest.approx(600e-6)
    slower = profile.model_copy(update={"wall": 1e-6})
    assert by(slower, lambda o: o.type)[-1].share == 0


def test_operations_and_activations_are_compared_like_every_other_figure(run):
    (models,) = [g for g in document(run)["comparison"] if g["title"] == "models"]
    rows = {row["label"]: row for row in models["rows"]}
    assert rows["operations per inference"]["change"]["text"] == "25.6× less"
    assert rows["activations, least memory"]["teacher"]["number"] == 196_608


def test_the_document_has_all_of_it(run):
    section = document(run)["results"]["operators"]
    assert section["source"]["path"] == "profile/operators.json"
    assert len(section["profiles"]) == 4


def test_a_run_whose_operators_were_not_profiled_says_so(finished):
    assert "The operators were not profiled." in words(page(finished))
    assert document(finished)["results"]["operators"] is None
    result = CliRunner().invoke(command, [str(finished.path)])
    assert isinstance(result.exception, UsageError)
    assert "were not profiled" in str(result.exception)


def test_what_is_not_available_is_said_and_the_rest_shown(run):
    report = operators_report()
    failed = report.profiles[3].model_copy(update={"operators": (), "error": "no counters"})
    report.model_copy(
        update={
            "profiles": (*report.profiles[:3], failed),
            "rooflines": (),
            "notes": ("local: no counters",),
        }
    ).write(run.path / "profile/operators.json")
    text = words(page(run))
    assert "local: no counters" in text
    assert "Time by module, openvino on local" in text
    assert "The device's limits are not known." in text


def test_nothing_at_all_is_no_crash(run):
    OperatorsReport(costs=(), profiles=(), rooflines=(), notes=()).write(
        run.path / "profile/operators.json"
    )
    assert "Where the time goes" in words(page(run))


def test_names_from_files_and_devices_are_text(run):
    report = operators_report()
    evil = tuple(
        p.model_copy(update={"operators": tuple(
            operator(HOSTILE, HOSTILE, HOSTILE, 5e-6, 1e6 * (i + 1)) for i in range(3))})
        for p in report.profiles
    )  # fmt: skip
    report.model_copy(update={"profiles": evil, "notes": (HOSTILE,)}).write(
        run.path / "profile/operators.json"
    )
    source = render(run)
    assert "<script" not in source
    assert HOSTILE in page(run).text


def test_an_edited_file_is_one_clear_error(run):
    (run.path / "profile/operators.json").write_text('{"costs": 3}')
    with pytest.raises(UsageError, match="costs"):
        render(run)


class TestCommand:
    def invoke(self, run, *arguments):
        return CliRunner().invoke(command, [str(run.path), *arguments], catch_exceptions=False)

    def test_it_lists_the_longest_first(self, run):
        result = self.invoke(run, "--runtime", "onnxruntime", "--role", "teacher", "--top", "3")
        lines = result.output.splitlines()
        assert lines[0] == "teacher in onnxruntime on local"
        assert [line.split()[-1] for line in lines[2:5]] == ["c14", "c13", "c12"]
        assert "412 µs in 17 operators, 14 more take 313 µs" in result.output
        assert "openvino" not in result.output

    def test_json_is_what_was_kept(self, run):
        found = json.loads(self.invoke(run, "--role", "student", "--json").stdout)
        assert {p["role"] for p in found["profiles"]} == {"student"}
        assert found["profiles"][0]["operators"][0]["type"] == "Conv"

    def test_what_is_not_there_is_said_with_what_is(self, run):
        with pytest.raises(UsageError, match="student in onnxruntime on local"):
            self.invoke(run, "--runtime", "tflite")
