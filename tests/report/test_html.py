"""report.html: one safe file, every figure in it from an artifact, whole for partial runs too."""

import html.parser
import re

import pytest

from edgekd.errors import UsageError
from edgekd.report.contents import read
from edgekd.report.html import _pareto, render
from edgekd.results import SchemeModel, SchemeReport
from edgekd.statistics import wilson
from tests.report.conftest import STUDENT, rewrite

HOSTILE = "<script>alert(1)</script>\"'&$x^2$\\frac{1}{2}"


class Page(html.parser.HTMLParser):
    """Tags with attributes, the visible text, and whether every tag is closed in order."""

    VOID = {"meta", "br", "hr", "img", "link", "input", "wbr", "col"}

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open, self.errors = [], "", [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page(run):
    parsed = Page(render(run))
    assert parsed.errors == []
    assert parsed.open == []
    return parsed


def words(parsed):
    return " ".join(parsed.text.split())


def test_the_page_loads_nothing_and_runs_nothing(source):
    parsed = Page(source)
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "embed", "form"}
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(
                ("#", "data:,", "data:image/png;base64,")
            )
    policies = [
        a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert not re.search(r"@import|url\((?!#)", source)


def test_identifiers_are_unique_and_links_in_the_page_have_a_target(source):
    identifiers = re.findall(r'\bid="([^"]+)"', source)
    assert len(identifiers) == len(set(identifiers))
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|labelledby="([^"]+)"', source)
    assert {"".join(t) for t in targets} <= set(identifiers)


def test_it_tells_the_verdict_first_and_every_budget(finished, source):
    text = words(Page(source))
    assert text.index("All 8 budgets hold") < text.index("Teacher against student")
    for check in finished.gate.checks:
        assert check.limit in text


def test_the_figures_are_those_of_the_artifacts(finished, source):
    text = words(Page(source))
    for m in finished.profile.measurements:
        assert m.path in text
    for comparison in finished.profile.comparisons:
        assert f"{comparison.speedup:.3g}× faster" in text
    assert "Intel(R) Core(TM) i7-1365U" in text
    assert "edgekd compress --example digits" in text
    assert "load average 1.8 on 12 cores while measuring" in text
    for record in finished.manifest.stages.values():
        assert record.key[:12] in text


def test_there_are_the_plots_that_the_issue_asks_for(source):
    titles = re.findall(r'aria-label="([^"]+)"', source) + re.findall(
        r"<title[^>]*>([^<]+)", source
    )
    joined = " ".join(titles).lower()
    for words_of_plot in (
        "accuracy against p50 latency",
        "latency of onnxruntime",
        "by class",
        "training of the student",
    ):
        assert words_of_plot in joined
    assert source.count("<svg") >= 6


def test_a_file_whose_accuracy_only_the_device_knows_is_in_the_plot_with_its_interval(builder):
    run = builder.build()

    def only_there(value):
        value["measurements"][3]["runtime"] = "onnxruntime-web"
        value["measurements"][3]["device_parity"] = {
            "samples": 50, "max_error": 1e-6, "agreement": 1, "accuracy": 0.9, "accuracy_here": 0.9,
            "tolerance": 1e-4,
        }  # fmt: skip

    rewrite(run, "profile", "profile/profile.json", only_there)
    low, high = wilson(45, 50)
    rows = [row for plot in _pareto(read(run)) for row in plot.rows]
    assert len(rows) == 4
    assert rows[3][1] == "onnxruntime-web"
    assert rows[3][4:] == ("90.00 %", f"{low * 100:.2f}–{high * 100:.2f} %")


def test_colours_of_plots_follow_the_page(source):
    svgs = "".join(re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL))
    assert "currentColor" in svgs
    assert "var(--student)" in svgs
    assert not re.search(r"#0102\d\d", svgs)


def test_a_hostile_text_stays_text(builder):
    builder.classes = (HOSTILE, *builder.classes[1:])
    builder.model = {"teacher": HOSTILE, "student": HOSTILE}
    builder.command = HOSTILE
    builder.environment = {"machine": {HOSTILE: HOSTILE}, "packages": {}, "git": HOSTILE}
    source = render(builder.build())
    assert "<script" not in source
    assert "&lt;script&gt;alert(1)" in source
    assert "\\frac{1}{2}" in Page(source).text


def test_a_failed_and_an_undecided_budget_are_named(builder):
    run = builder.build()

    def break_it(value):
        value["verdict"], value["exit_code"] = "fail", 1
        value["checks"][0]["verdict"] = "fail"
        value["checks"][1]["verdict"] = "inconclusive"

    rewrite(run, "gate", "gate/gate.json", break_it)
    text = words(page(run))
    assert "1 of 8 budgets is broken: accuracy drop" in text
    assert "FAIL" in text
    assert "inconclusive" in text


@pytest.mark.parametrize("done", range(8))
def test_a_run_that_is_not_finished_has_a_report_of_what_there_is(builder, done):
    from tests.report.conftest import STAGES

    text = words(page(builder.build(*STAGES[:done]) if done else _empty(builder)))
    for stage in STAGES[done:]:
        assert stage in text


def _empty(builder):
    run = builder.build("teacher")
    run.write_manifest(run.manifest.model_copy(update={"stages": {}}))
    return run


def test_given_weights_have_no_curves_and_the_page_says_so(builder):
    run = builder.build()
    (run.path / "teacher/history.json").unlink()
    assert "The weights of the teacher were given" in words(page(run))


def test_what_a_scheme_trained_on_the_way_is_a_table(builder):
    run = builder.build()
    assert "trained on the way" not in words(page(run))
    made = [
        SchemeModel(name="specialist 1", folder="specialists/1", model="zoo:mlp", classes=("3", HOSTILE),
                    validation=None, test=STUDENT),
        SchemeModel(name="student", folder=".", model="zoo:dscnn", validation=STUDENT, test=STUDENT),
    ]  # fmt: skip
    report = SchemeReport(scheme="specialists", models=tuple(made))
    report.write(run.path / "student/scheme.json")
    found = words(page(run))
    assert "What was trained on the way" in found
    assert f"specialist 1zoo:mlp3, {HOSTILE}–{STUDENT.value:.2%}" in found


def test_many_classes_and_targets_stay_readable(builder):
    builder.targets = ["local", "raspberry-pi-5"]
    assert "raspberry-pi-5" in words(page(builder.build()))


def test_an_edited_artifact_is_one_clear_error(builder):
    run = builder.build()
    (run.path / "verify/parity.json").write_text("{}")
    with pytest.raises(UsageError, match=r"parity\.json"):
        render(run)


def test_samples_that_are_no_archive_are_one_clear_error(builder):
    run = builder.build()
    (run.path / "profile/samples.npz").write_bytes(b"not an archive")
    with pytest.raises(UsageError, match=r"samples\.npz: not an archive"):
        render(run)


def test_every_step_is_a_row_with_its_worst_inputs():
    from edgekd.report.checks import edge_text
    from edgekd.report.edges import edge_batches, edge_rows
    from edgekd.results import Edge, InputCase, VerifyReport

    def case(inputs, error, tolerance=1e-4, passed=True, note=""):
        return InputCase(
            inputs=inputs, samples=40, max_abs_error=error, max_error=error, snr=90.4, cosine=1.0,
            agreement=0.975, agreement_interval=(0.871, 0.996), tolerance=tolerance, passed=passed,
            note=note,
        )  # fmt: skip

    cases = (
        case("batch 256", 2e-6),
        case("batch 3", 3e-3, passed=False),
        case("large constant", 0.7, tolerance=None),
        case("zeros", None, note="the logits of PyTorch are not finite"),
    )
    edge = Edge(
        role="student", variant="f32", path="export/student.xml", runtime="openvino", precision="f32",
        source="export/student.onnx", cases=cases,
    )  # fmt: skip
    report = VerifyReport(reference={}, files=(), edges=(edge,))
    (row,) = edge_rows(report)
    assert (row.real, row.real_where) == ("3.00e-03", "batch 3, limit 0.0001")
    assert (row.extreme, row.extreme_where) == ("7.00e-01", "large constant, not judged")
    assert (row.snr, row.agreement, row.verdict) == ("90 dB", "97.5 % [87.1, 99.6]", "fail")
    assert edge_batches(report) == "256 and 3"
    assert edge_text(edge) == (
        "FAIL  export/student.onnx → export/student.xml in openvino, f32: largest error 3.0e-03 "
        "(limit 0.0001) at batch 3; 3 kinds of inputs"
    )
