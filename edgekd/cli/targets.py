"""`edgekd targets`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli.line import print_json


@click.group("targets")
def command() -> None:
    """List and show device descriptors: one YAML file per device.

    Your own go in ./targets, or in targets/ beside the configuration.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_(as_json: bool) -> None:
    """List the targets that `profile.targets` can name here."""
    from edgekd.profile.targets import available

    found = available(Path.cwd())
    if as_json:
        print_json([target.model_dump(mode="json", by_alias=True) for target in found.values()])
        return
    for path, target in found.items():
        click.echo(
            f"{target.name:<20} {target.kind:<7} {target.transport:<8} {target.description}  ({path})"
        )


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(name: str, as_json: bool) -> None:
    """Show the target NAME with all of its settings."""
    import yaml

    from edgekd.profile.targets import find

    value = find(name, Path.cwd()).model_dump(mode="json", by_alias=True)
    if as_json:
        print_json(value)
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)
