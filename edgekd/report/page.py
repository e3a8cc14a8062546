"""Templates to self-contained HTML: everything that is filled in is escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def page(template: str, **values: Any) -> str:
    """A template of this folder with the style sheet and `values`; a missing one is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_resource),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = Markup(_resource("style.css"))
    return environment.get_template(template).render(style=style, **values)


def _resource(name: str) -> str:
    return resources.files("edgekd.report").joinpath(name).read_text(encoding="utf-8")
