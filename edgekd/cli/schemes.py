"""`edgekd schemes`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from edgekd.cli.line import print_json


@click.command("schemes")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the schemes, for `distill.scheme`: who learns from whom, with parameters and paper."""
    from edgekd.distill.scheme import SCHEMES

    entries: list[dict[str, Any]] = []
    for name in SCHEMES.names():
        scheme = SCHEMES.get(name)
        paper = inspect.getdoc(inspect.getmodule(scheme)) or ""
        definition = inspect.getdoc(scheme) or ""
        entries.append(
            {
                "name": name,
                "parameters": {
                    key: None if field.is_required() else field.default
                    for key, field in scheme.model_fields.items()
                },
                "defaults": scheme.defaults,
                "paper": paper.splitlines()[0],
                "definition": definition.split("\n\n")[0].replace("\n", " "),
            }
        )
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        parameters = ", ".join(
            f"{key}: {'…' if value is None else value}"
            for key, value in entry["parameters"].items()
        )
        click.secho(
            f"{entry['name']}: {{{parameters}}}" if parameters else entry["name"], bold=True
        )
        click.echo(f"    {entry['definition']}\n    {entry['paper']}")
