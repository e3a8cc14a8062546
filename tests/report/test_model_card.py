"""MODEL_CARD.md and sbom.json."""

import importlib.metadata
import importlib.resources
import json

import jsonschema
import pytest
import referencing
from markdown_it import MarkdownIt

from edgekd.artifacts import sha256_file
from edgekd.report import model_card, sbom
from edgekd.report.contents import read
from edgekd.results import SchemeReport
from tests.report.conftest import STAGES, rewrite
from tests.report.test_html import HOSTILE

MARKDOWN = MarkdownIt("gfm-like", {"linkify": False}).enable("table")
EVIL = f"# h *b* [x](http://evil.example) ![i](http://evil.example/i.png) | `c` www.evil.example {HOSTILE}"


def card(run):
    return model_card.render(read(run))


def bill(run, licence=None):
    return sbom.document(read(run), {}, licence)


def test_the_card_has_the_figures_of_every_deployed_file(finished):
    text = card(finished)
    for file in finished.files:
        assert (f"| {file.path} |" in text) == (file.role == "student")
    student = finished.verify.files[1].accuracy
    low, high = student.interval
    assert f"{student.value:.2%} ({low * 100:.2f}–{high * 100:.2f})".replace("%", " %") in text
    for m in finished.profile.measurements:
        assert f"{m.runtime} {m.runtime_version}" in text
    for heading in (
        "Data",
        "Recipe",
        "Deployed files",
        "Speed and memory",
        "Limits",
        "How to reproduce",
    ):
        assert f"\n## {heading}\n" in text
    assert "edgekd compress --example digits" in text
    assert "licence of the model | unknown |" in text
    assert "methods: auto" in text


def test_the_card_has_the_methods_that_auto_was(builder):
    run = builder.build()
    methods = ({"kd": {"temperature": 4.0, "weight": 0.9}},)
    report = SchemeReport(scheme="offline", models=(), alpha=0.1, methods=methods)
    report.write(run.path / "student/scheme.json")
    text = card(run)
    assert "temperature: 4" in text
    assert "methods: auto" not in text


def test_memory_that_a_device_does_not_tell_is_not_known(builder):
    run = builder.build()

    def forget(value):
        value["measurements"][1]["memory"]["model"] = None

    rewrite(run, "profile", "profile/profile.json", forget)
    assert "| not known | measured |" in card(run)


def test_a_licence_that_is_given_is_there(builder):
    run = builder.build()
    manifest = run.manifest
    run.write_manifest(
        manifest.model_copy(update={"config": {**manifest.config, "license": "CC-BY-4.0"}})
    )
    assert "licence of the model | CC-BY-4.0 |" in card(run)


def test_tables_are_tables(finished):
    """As a Markdown parser sees them: no row has a cell too many or too few, none is plain text."""
    tokens = MARKDOWN.parse(card(finished))
    assert sum(t.type == "table_open" for t in tokens) >= 5
    assert not [t for t in tokens if t.type == "inline" and t.content.startswith("|")]


def test_hostile_names_are_text(builder):
    builder.classes = (f"{EVIL}\x1b[31m\u202e", "1. a", "- b", "+ c", *builder.classes[4:])
    builder.model = {"teacher": EVIL, "student": EVIL}
    builder.targets = [EVIL, "# title\n\n# second"]
    builder.command = f"{EVIL}\x1b\n```\n# out\n````\n<script>"
    builder.environment = {"packages": {EVIL: EVIL}, "machine": {}, "git": None}
    text = card(builder.build())
    assert not {"\x1b", "\u202e"} & set(text)
    tokens = MARKDOWN.parse(text)
    inline = [child for t in tokens if t.children for child in t.children]
    assert not [t for t in tokens + inline if t.type in ("html_block", "html_inline", "image")]
    assert not [
        t for t in inline if t.type in ("link_open", "em_open", "strong_open", "code_inline")
    ]
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    sections = "Data, Recipe, Deployed files, Speed and memory, Limits, How to reproduce"
    assert headings == ["digits", *sections.split(", ")]
    rendered = MARKDOWN.render(text)
    assert "<script" not in rendered
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered
    assert "://evil" not in text.partition("## Recipe")[0].replace("\\://", "")


@pytest.mark.parametrize("done", range(8))
def test_unfinished_runs_have_both(builder, done):
    run = builder.build(*STAGES[: max(1, done)])
    if not done:
        run.write_manifest(run.manifest.model_copy(update={"stages": {}}))
    assert ("Not done yet" in card(run)) == (done < 7)
    validate(bill(run))


def validate(document):
    """Against the schema that CycloneDX publishes."""
    folder = importlib.resources.files("cyclonedx.schema._res")
    names = ("bom-1.6", "spdx", "jsf-0.82")
    schemas = [json.loads((folder / f"{n}.SNAPSHOT.schema.json").read_text("utf-8")) for n in names]
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in schemas
    )
    jsonschema.Draft7Validator(schemas[0], registry=registry).validate(document)


def test_the_bill_is_cyclonedx_with_every_artifact_and_package(finished):
    document = bill(finished, "MIT")
    validate(document)
    hashes = {c["name"]: c["hashes"][0]["content"] for c in document["components"] if "hashes" in c}
    artifacts = {
        path for record in finished.manifest.stages.values() for path in record.artifacts
    }  # fmt: skip
    assert set(hashes) == artifacts
    for path, digest in hashes.items():
        assert digest == sha256_file(finished.path / path)
    packages = {c["name"]: c for c in document["components"] if c["type"] == "library"}
    for name in ("torch", "onnxruntime", "openvino", "numpy"):
        assert packages[name]["version"] == importlib.metadata.version(name)
        assert packages[name]["licenses"]
    assert document["metadata"]["component"]["licenses"] == [{"license": {"name": "MIT"}}]
    references = [c["bom-ref"] for c in document["components"]]
    assert len(references) == len(set(references))
    known = {*references, "run"}
    for entry in document["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= known


def test_a_bill_that_is_wrong_is_noticed(finished):
    document = bill(finished)
    document["components"][-1]["hashes"][0]["content"] = "no hash"
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def test_the_same_run_has_the_same_bill(builder):
    run = builder.build()
    assert bill(run) == bill(run)
    (run.path / "new").write_bytes(b"x")
    other = sbom.document(read(run), {"new": run.path / "new"}, None)
    assert other["serialNumber"] != bill(run)["serialNumber"]


def test_hostile_package_names_in_the_manifest_are_passed_over(builder):
    builder.environment = {"packages": {"../../etc": "1", "": None, EVIL: "2"}}
    validate(bill(builder.build()))
