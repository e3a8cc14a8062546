"""The model card of a run's student, in Markdown (Mitchell et al. 2019, arXiv:1810.03993)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from packaging.utils import canonicalize_name

from edgekd.config.units import format_quantity
from edgekd.report import checks
from edgekd.report.comparison import Value
from edgekd.report.contents import Contents
from edgekd.report.sbom import installed, licence_text
from edgekd.report.text import one_line
from edgekd.results import ExportedFile
from edgekd.tasks.check import SEGMENTATION
from edgekd.tasks.task import of
from edgekd.teachers.teacher import kind_of

# The parts of a configuration that make up the recipe.
_RECIPE = ("seed", "data", "teacher", "student", "distill", "quantize")


def render(contents: Contents) -> str:
    """What the model is, its data, its recipe, its figures with intervals, and its limits.

    Every text from models, data and devices is escaped: it can be no markup.
    """
    environment = jinja2.Environment(
        autoescape=False,
        finalize=_escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = resources.files("edgekd.report").joinpath("model_card.md.j2")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    config = contents.manifest.config
    recipe = {key: config[key] for key in _RECIPE if key in config}
    scheme = contents.scheme
    if scheme is not None and scheme.methods is not None:
        # What `auto` was.
        chosen = {"alpha": scheme.alpha, "methods": list(scheme.methods)}
        recipe["distill"] = {**recipe["distill"], **chosen}
    return template.render(
        manifest=contents.manifest,
        config=config,
        models=contents.models,
        student=contents.models.get("student"),
        teacher=contents.models.get("teacher"),
        recipe=_code(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)),
        teacher_elsewhere=_elsewhere(config),
        count=lambda a: f"{a.total:,}" if a else "none answered",
        command=_code(contents.manifest.command),
        files=[_file(contents, file) for file in contents.files if file.role == "student"],
        device=[
            (p, contents.digest(p.path) or "unknown")
            for p in (contents.verify.device if contents.verify else ())
        ],
        measured=[
            (
                m,
                Value(m.latency.p50, "time", m.latency.p50_interval),
                Value(m.latency.p99, "time", m.latency.p99_interval),
            )
            for m in (contents.profile.measurements if contents.profile else ())
            if m.role == "student"
        ],
        size=lambda value: format_quantity(value, "bytes"),
        share=lambda a: _with_interval(Value(a.value, "share", a.interval)),
        figure=_with_interval,
        gate=contents.gate,
        sentences=checks.gate_sentences(contents.gate) if contents.gate else None,
        environments=contents.profile.environment if contents.profile else {},
        warnings=contents.profile.warnings if contents.profile else (),
        calibration=contents.quantize.calibration if contents.quantize else None,
        score=contents.score,
        network=_network(contents),
        answers_classes=of(contents.task).top1,
        pixels=contents.task == SEGMENTATION,
        missing=contents.missing,
        packages=tuple(_packages(contents)),
    )


def _network(contents: Contents) -> str | None:
    """What the student is, as a sentence begins."""
    student = contents.models.get("student")
    if student is None:
        return None
    text = of(student.card.task).network.format(n=len(student.card.classes))
    return text[0].upper() + text[1:]


def _elsewhere(config: dict[str, Any]) -> bool:
    """Whether the teacher came as it is: nothing here trained it."""
    return kind_of(config.get("teacher", {}).get("model", "")).Options is not None


def _file(contents: Contents, file: ExportedFile) -> dict[str, Any]:
    parities = [
        p for p in (contents.verify.files if contents.verify else ()) if p.path == file.path
    ]
    return {"file": file, "sha256": contents.digest(file.path) or "unknown", "parities": parities}


def _with_interval(value: Value) -> str:
    return f"{value.text} ({value.interval_text})" if value.interval else value.text


def _packages(contents: Contents) -> Iterator[tuple[str, str, str]]:
    """What computed the results: name, version, licence; all packages are in sbom.json."""
    recorded = contents.manifest.environment.get("packages")
    found = installed(contents)
    for name, version in (recorded if isinstance(recorded, dict) else {}).items():
        if version is not None:
            package = found.get(canonicalize_name(str(name)))
            yield str(name), str(version), licence_text(package) if package else "unknown"


def _escaped(value: object) -> object:
    """Text in which no character is markup: none of Markdown's or GitHub's, and none of HTML's."""
    if isinstance(value, Markup):
        return value
    line = " ".join(one_line(str(value)).split())
    line = re.sub(r"([\\`*_{}\[\]#|~@$])", r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A value may begin a line: no list, rule or heading; and no bare address becomes a link.
    line = re.sub(r"^([-+=]|\d+(?=[.)]\s))", _first, line)
    return line.replace("://", "\\://").replace("www.", "www\\.")


def _first(match: re.Match[str]) -> str:
    return f"\\{match[1]}" if not match[1].isdigit() else f"{match[1]}&#8203;"


def _code(text: str) -> Markup:
    """A block of code that its own text cannot end."""
    text = "\n".join(map(one_line, text.rstrip("\n").split("\n")))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}text\n{text}\n{fence}")
