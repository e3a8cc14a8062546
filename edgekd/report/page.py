"""Templates to self-contained HTML: everything that is filled in is escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def page(template: str, package: str = __package__, **values: Any) -> str:
    """A template of a package's folder with our style sheet and `values`; a missing one is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(lambda name: _resource(package, name)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = Markup(_resource(__package__, "style.css"))
    return environment.get_template(template).render(style=style, **values)


def _resource(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
