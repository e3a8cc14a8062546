"""`edgekd methods`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from edgekd.cli.line import print_json


@click.command("methods")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the distillation methods, for `distill.methods`, with weight, paper and definition."""
    from edgekd.distill.method import METHODS

    entries: list[dict[str, Any]] = []
    unless_used = ("warmup", "alone")
    for name in METHODS.names():
        method = METHODS.get(name)
        paper = inspect.getdoc(inspect.getmodule(method)) or ""
        definition = inspect.getdoc(method) or ""
        parameters = method().model_dump(mode="json", exclude={"taps"})
        entries.append(
            {
                "name": name,
                "needs": sorted(method.needs),
                "parameters": {k: v for k, v in parameters.items() if v or k not in unless_used},
                "paper": paper.splitlines()[0],
                "definition": definition.splitlines()[0],
            }
        )
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        told = ", ".join(f"{key}: {value}" for key, value in entry["parameters"].items())
        click.secho(f"{entry['name']}: {{{told}}}", bold=True)
        click.echo(f"    {entry['definition']}\n    {entry['paper']}")
